"""Gated DeltaNet-2: a delta rule that erases and writes by gates of each channel."""

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


class GatedDeltaNet2(DeltaMixer):
    """Gated DeltaNet-2 (arXiv:2605.22791): [B,T,D] -> [B,T,D].

    S_t = (I - k_t (b_t * k_t)^T) diag(alpha_t) S_{t-1} + k_t (w_t * v_t)^T, read by q_t K^-1/2:
    Kimi Delta Attention with the erase gate b = max_erase sigmoid(W_b x) of K channels and the
    write gate w = sigmoid(W_w x) of V channels in place of one beta. q, k and v pass a bias-free
    short convolution and SiLU, q and k are L2-normalised, alpha = exp(-exp(A) softplus(W_2 W_1 x +
    dt)) per channel, A per head. The output is W_o (RMSNorm(o) * sigmoid(W_4 W_3 x + c)), the norm
    per head; W_1 and W_3 map to V channels.

    head_dim: K, width/num_heads if None; expand_v: V/K; conv_window: tokens that the convolution
    reads; max_erase: 2 lets the erase reflect (arXiv:2411.12537). exp(A) starts uniform in
    (1, 16), softplus(dt) log-uniform in (1e-3, 1e-1), projections normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    expand_v: Expansion = 1.0
    conv_window: Count = 4
    max_erase: Reflection = 1.0

    paper: ClassVar[str] = "arXiv:2605.22791"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, head_dim=8, expand_v=1.5, max_erase=2.0))

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
        channels, values = ("heads", "head_dim"), ("heads", "value_dim")
        erase = self.max_erase * nn.sigmoid(wide(Dense((heads, dim), channels, name="erase")(x)))
        value = value * nn.sigmoid(Dense((heads, value_dim), values, name="write")(x))
        low = Dense((value_dim,), ("rank",), name="rate_in")(x)
        rate = wide(Dense((heads, dim), channels, ("rank",), name="rate")(low))
        rate = nn.softplus(rate + wide(self.param("dt_bias", free(
            step_bias, channels), (heads, dim))))
        scale = jnp.exp(wide(self.param("a_log", free(
            log_rate(1.0), ("heads",)), (heads,))))

        out, state = self.mix(query, key, value, x, seq, state, shared, tail,
                              beta=jnp.ones(rate.shape[:3], rate.dtype),
                              log_decay=-scale[:, None] * rate, erase=erase * key)
        low = Dense((value_dim,), ("rank",), name="gate_in")(x)
        gate = Dense((heads, value_dim), values, ("rank",), use_bias=True, name="gate")(low)
        out = RmsNorm("value_dim", eps=1e-5, name="norm")(out) * nn.sigmoid(gate)
        out = Dense((self.width,), ("width",), values, scale=self.output_scale, name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        channels = self.num_heads * (2 * site.key_dim + site.value_dim)
        return self.empty_state(batch, site.value_dim,
                                conv.init_state(batch, self.conv_window, channels, dtype))
