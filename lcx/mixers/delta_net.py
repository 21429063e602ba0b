"""DeltaNet: linear attention whose every write first erases what its key held."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Expansion, Reflection
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.delta_family import DeltaMixer, unit
from lcx.ops import conv
from lcx.types import wide


class DeltaNet(DeltaMixer):
    """DeltaNet (arXiv:2406.06484): [B,T,D] -> [B,T,D].

    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, read by q_t K^-1/2; q, k and v pass a
    bias-free short convolution and SiLU, q and k are L2-normalised, beta = max_beta sigmoid(W_b x).
    The output is W_o RMSNorm(o), the norm per head, without a gate.

    head_dim: K, width/num_heads if None; expand_v: V/K; conv_window: tokens that the convolution
    reads; max_beta: 2 lets the erase reflect (eigenvalues down to -1, arXiv:2411.12537).
    Projections start normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    expand_v: Expansion = 1.0
    conv_window: Count = 4
    max_beta: Reflection = 1.0

    paper: ClassVar[str] = "arXiv:2406.06484"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, head_dim=8, expand_v=1.5, max_beta=2.0))

    def site(self) -> Site:
        dim, value_dim = self.head_sizes(self.head_dim, self.expand_v)
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=value_dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim, value_dim = self.num_heads, self.site().key_dim, self.site().value_dim
        (query, key, value), tail = self.convolved(x, seq, state, self.conv_window, dim, dim,
                                                   value_dim)
        query, key = unit(query) * dim**-0.5, unit(key)
        beta = self.max_beta * nn.sigmoid(wide(Dense((heads,), ("heads",), name="beta")(x)))

        out, state = self.mix(query, key, value, x, seq, state, shared, tail, beta=beta)
        out = RmsNorm("value_dim", eps=1e-5, name="norm")(out)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        channels = self.num_heads * (2 * site.key_dim + site.value_dim)
        return self.empty_state(batch, site.value_dim,
                                conv.init_state(batch, self.conv_window, channels, dtype))
