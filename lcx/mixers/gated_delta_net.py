"""Gated DeltaNet: a delta rule whose memory also fades by a learned gate."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Expansion
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.delta_family import DeltaMixer, log_rate, step_bias, unit
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free


class GatedDeltaNet(DeltaMixer):
    """Gated DeltaNet (arXiv:2412.06464): [B,T,D] -> [B,T,D].

    S_t = (I - beta_t k_t k_t^T) alpha_t S_{t-1} + beta_t k_t v_t^T, read by q_t K^-1/2; q, k and v
    pass a bias-free short convolution and SiLU, q and k are L2-normalised, beta = sigmoid(W_b x)
    and alpha = exp(-exp(A) softplus(W_a x + dt)). The output is W_o (RMSNorm(o) * SiLU(W_z x)),
    the norm per head.

    head_dim: K, 3/4 width/num_heads (down to a multiple of 4) if None, so that with expand_v =
    V/K = 2 a layer has 6 width^2 weights; conv_window: tokens that the convolution reads. exp(A)
    starts uniform in (0.01, 16), softplus(dt) log-uniform in (1e-3, 1e-1), projections normal with
    variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    expand_v: Expansion = 2.0
    conv_window: Count = 4

    paper: ClassVar[str] = "arXiv:2412.06464"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, head_dim=8, expand_v=1))

    def site(self) -> Site:
        dim = self.head_dim or 4 * max(1, 3 * self.width // (16 * self.num_heads))
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=int(dim * self.expand_v))

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim, value_dim = self.num_heads, self.site().key_dim, self.site().value_dim
        (query, key, value), tail = self.convolved(x, seq, state, self.conv_window, dim, dim,
                                                   value_dim)
        query, key = unit(query) * dim**-0.5, unit(key)
        beta = nn.sigmoid(wide(Dense((heads,), ("heads",), name="beta")(x)))
        per_head = lambda name, init: wide(self.param(
            name, free(init, ("heads",)), (heads,)))
        rate = wide(Dense((heads,), ("heads",), name="rate")(x)) + per_head("dt_bias", step_bias)
        log_decay = -jnp.exp(per_head("a_log", log_rate(0.01))) * nn.softplus(rate)

        out, state = self.mix(query, key, value, x, seq, state, shared, tail,
                              beta=beta, log_decay=log_decay)
        gate = Dense((heads, value_dim), ("heads", "value_dim"), name="gate")(x)
        out = RmsNorm("value_dim", name="norm")(out) * nn.silu(gate)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        channels = self.num_heads * (2 * self.site().key_dim + self.site().value_dim)
        tail = conv.init_state(batch, self.conv_window, channels, dtype)
        return self.empty_state(batch, self.site().value_dim, tail)

