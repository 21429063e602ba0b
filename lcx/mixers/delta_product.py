"""DeltaProduct: several delta-rule writes of each token, a product of reflections."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Expansion, Reflection
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.delta_family import DeltaMixer, log_rate, step_bias, unit
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free


class DeltaProduct(DeltaMixer):
    """Gated DeltaProduct (arXiv:2502.10297): [B,T,D] -> [B,T,D].

    The memory fades once, S = alpha_t S_{t-1}; then each of `writes` pairs k, v with its own beta
    in (0, 2) corrects it in turn, S += beta k (v - S^T k)^T; then q_t K^-1/2 reads. Everything else
    is Gated DeltaNet (arXiv:2412.06464): short convolutions with SiLU, unit q and k, alpha =
    exp(-exp(A) softplus(W_a x + dt)), output W_o (RMSNorm(o) * SiLU(W_z x)).

    gated: False leaves alpha out. head_dim: K, width/num_heads if None; expand_v: V/K;
    conv_window: tokens that the convolution reads; max_beta: 1 forbids reflections. exp(A) starts
    uniform in (0.01, 16), softplus(dt) log-uniform in (1e-3, 1e-1), projections normal with
    variance 1/fan_in.
    """

    writes: Count = 2
    num_heads: Count = 4
    head_dim: Count | None = None
    expand_v: Expansion = 2.0
    conv_window: Count = 4
    gated: bool = True
    max_beta: Reflection = 2.0

    paper: ClassVar[str] = "arXiv:2502.10297"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(writes=3, num_heads=2, head_dim=8, expand_v=1, gated=False))

    def site(self) -> Site:
        dim, value_dim = self.head_sizes(self.head_dim, self.expand_v)
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=value_dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim, value_dim = self.num_heads, self.site().key_dim, self.site().value_dim
        parts, tail = self.convolved(x, seq, state, self.conv_window, dim, *self._sizes())
        query, keys, values = parts[0], parts[1 : 1 + self.writes], parts[1 + self.writes :]
        query = unit(query) * dim**-0.5
        keys = jnp.stack([unit(key) for key in keys], 2)
        beta = self.max_beta * nn.sigmoid(wide(Dense(
            (self.writes, heads), (None, "heads"), name="beta")(x)))
        log_decay = None
        if self.gated:
            per_head = lambda name, init: wide(self.param(
                name, free(init, ("heads",)), (heads,)))
            rate = wide(Dense((heads,), ("heads",), name="rate")(x))
            rate = nn.softplus(rate + per_head("dt_bias", step_bias))
            log_decay = -jnp.exp(per_head("a_log", log_rate(0.01))) * rate

        out, state = self.mix(query, keys, jnp.stack(values, 2), x, seq, state, shared, tail,
                              beta=beta, log_decay=log_decay)
        gate = Dense((heads, value_dim), ("heads", "value_dim"), name="gate")(x)
        out = RmsNorm("value_dim", eps=1e-5, name="norm")(out) * nn.silu(gate)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        channels = self.num_heads * (self.site().key_dim + sum(self._sizes()))
        return self.empty_state(batch, self.site().value_dim,
                                conv.init_state(batch, self.conv_window, channels, dtype))

    def _sizes(self) -> tuple[int, ...]:
        """Of the keys, then of the values of a token's writes."""
        site = self.site()
        return (site.key_dim,) * self.writes + (site.value_dim,) * self.writes
