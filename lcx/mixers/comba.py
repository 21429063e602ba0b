"""Comba: a delta rule that erases by a damped key and reads beside what it erases."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Expansion, Finite
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.delta_family import DeltaMixer, log_rate, step_bias, unit
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free


class Comba(DeltaMixer):
    """Comba (arXiv:2506.02475): [B,T,D] -> [B,T,D].

    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t)^T with p_t = sigmoid(d) k_t: the erase
    reads the memory *before* it fades, by a key damped per head. q, k and v pass a bias-free short
    convolution and SiLU; the query q_t - D p_t (p of the key as it leaves the convolution, D per
    head) and k are then L2-normalised, and the query reads with K^-1/2. beta = sigmoid(W_b x),
    alpha = exp(-exp(A) softplus(W_a x + dt)). The output is W_o (RMSNorm(o) * sigmoid(W_z x)), the
    norm per head.

    head_dim: K, width/num_heads if None; expand_v: V/K; conv_window: tokens that the convolution
    reads; correction: where D starts (the authors name 1 and, for small models, 0.02). d starts
    at 1, exp(A) uniform in (0.01, 16), softplus(dt) log-uniform in (1e-3, 1e-1), projections
    normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    expand_v: Expansion = 2.0
    conv_window: Count = 4
    correction: Finite = 1.0

    paper: ClassVar[str] = "arXiv:2506.02475"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, head_dim=8, expand_v=1, correction=0.02))

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
        per_head = lambda name, init: wide(self.param(
            name, free(init, ("heads",)), (heads,)))
        damping = nn.sigmoid(per_head("damping", nn.initializers.ones_init()))[:, None]
        correction = per_head("correction", nn.initializers.constant(self.correction))[:, None]
        query = unit(wide(query) - correction * damping * key) * dim**-0.5
        key = unit(key)
        beta = nn.sigmoid(wide(Dense((heads,), ("heads",), name="beta")(x)))
        rate = wide(Dense((heads,), ("heads",), name="rate")(x)) + per_head("dt_bias", step_bias)
        log_decay = -jnp.exp(per_head("a_log", log_rate(0.01))) * nn.softplus(rate)

        out, state = self.mix(query, key, value, x, seq, state, shared, tail, beta=beta,
                              log_decay=log_decay, erase=damping * key, undecayed=True)
        gate = Dense((heads, value_dim), ("heads", "value_dim"), name="gate")(x)
        out = RmsNorm("value_dim", eps=1e-5, name="norm")(out) * nn.sigmoid(gate)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        channels = self.num_heads * (2 * site.key_dim + site.value_dim)
        return self.empty_state(batch, site.value_dim,
                                conv.init_state(batch, self.conv_window, channels, dtype))
