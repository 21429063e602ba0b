"""Kimi Delta Attention: a delta rule whose memory fades by a learned gate of each channel."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Expansion, real
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.delta_family import DeltaMixer, log_rate, step_bias, unit
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free


class Kda(DeltaMixer):
    """Kimi Delta Attention (arXiv:2510.26692): [B,T,D] -> [B,T,D].

    S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T, read by q_t K^-1/2; q, k
    and v pass a bias-free short convolution and SiLU, q and k are L2-normalised, beta =
    sigmoid(W_b x) per head and alpha = exp(-exp(A) softplus(W_2 W_1 x + dt)) per channel, A per
    head. The output is W_o (RMSNorm(o) * sigmoid(W_4 W_3 x)), the norm per head; W_1 and W_3 map
    to V channels.

    head_dim: K, width/num_heads if None; expand_v: V/K; conv_window: tokens that the convolution
    reads; lower_bound: b < 0 takes alpha = exp(b sigmoid(exp(A) (W_2 W_1 x + dt))) >= exp(b)
    instead. exp(A) starts uniform in (1, 16), at 1 under a bound; softplus(dt) log-uniform in
    (1e-3, 1e-1); projections normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    expand_v: Expansion = 1.0
    conv_window: Count = 4
    lower_bound: Annotated[float, real(high=0, below=True)] | None = None

    paper: ClassVar[str] = "arXiv:2510.26692"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, head_dim=8, expand_v=1.5, lower_bound=-5.0))

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
        beta = nn.sigmoid(wide(Dense((heads,), ("heads",), name="beta")(x)))
        low = Dense((value_dim,), ("rank",), name="rate_in")(x)
        rate = wide(Dense((heads, dim), ("heads", "head_dim"), ("rank",), name="rate")(low))
        rate = rate + wide(self.param("dt_bias", free(
            step_bias, ("heads", "head_dim")), (heads, dim)))
        bounded = self.lower_bound is not None
        scale = jnp.exp(wide(self.param("a_log", free(
            nn.initializers.zeros_init() if bounded else log_rate(1.0), ("heads",)), (heads,))))
        log_decay = (self.lower_bound * nn.sigmoid(scale[:, None] * rate) if bounded
                     else -scale[:, None] * nn.softplus(rate))

        out, state = self.mix(query, key, value, x, seq, state, shared, tail,
                              beta=beta, log_decay=log_decay)
        low = Dense((value_dim,), ("rank",), name="gate_in")(x)
        gate = Dense((heads, value_dim), ("heads", "value_dim"), ("rank",), name="gate")(low)
        out = RmsNorm("value_dim", eps=1e-5, name="norm")(out) * nn.sigmoid(gate)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        channels = self.num_heads * (2 * site.key_dim + site.value_dim)
        return self.empty_state(batch, site.value_dim,
                                conv.init_state(batch, self.conv_window, channels, dtype))
