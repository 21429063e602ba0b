"""Gated linear attention: every channel of the state fades by a gate that the content decides."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, Expansion, Positive
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.vector_family import VectorMixer
from lcx.types import wide


class Gla(VectorMixer):
    """Gated linear attention (arXiv:2312.06635): S_t = diag(a_t) S_{t-1} + k_t v_t^T, q_t K^-1/2.

    a_t = sigmoid(W_2 W_1 x + b)^(1/gate_divisor), W_1 of rank `low_rank`; out = W_o (norm(o) *
    SiLU(W_g x)), the norm an RMS of each head with gain. head_dim: K, width x expand_key /
    num_heads if None; V = width x expand_value / num_heads. Projections start normal with variance
    1/fan_in, b at 0 (gates start near 2^(-1/16) = 0.958).
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    expand_key: Expansion = 0.5
    expand_value: Expansion = 1.0
    low_rank: Count = 16
    gate_divisor: Positive = 16.0

    paper: ClassVar[str] = "arXiv:2312.06635"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, head_dim=6, expand_value=0.5, gate_divisor=1.0))

    def site(self) -> Site:
        key_width, value_width = self.width * self.expand_key, self.width * self.expand_value
        if (self.head_dim is None and key_width % self.num_heads) or value_width % self.num_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} must divide width x expand_key={key_width} (or set "
                f"head_dim) and width x expand_value={value_width}")
        dim = self.head_dim or int(key_width) // self.num_heads
        return Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                    value_dim=int(value_width) // self.num_heads)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        heads, dim, value_dim = site.num_heads, site.key_dim, site.value_dim
        query = Dense((heads, dim), ("heads", "head_dim"), name="query")(x) * dim**-0.5
        key = Dense((heads, dim), ("heads", "head_dim"), name="key")(x)
        value = Dense((heads, value_dim), ("heads", "value_dim"), name="value")(x)
        low = Dense((self.low_rank,), (None,), name="rate_down")(x)
        decay = Dense((heads, dim), ("heads", "head_dim"), (None,), use_bias=True,
                      name="rate_up")(low)
        log_decay = nn.log_sigmoid(wide(decay)) / self.gate_divisor
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.mix(query, key, value, seq, lanes, carry, state, log_decay=log_decay)
        gate = Dense((heads, value_dim), ("heads", "value_dim"), name="gate")(x)
        out = RmsNorm("value_dim", eps=1e-5, name="norm")(out) * nn.silu(gate)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_state(batch, max_length, self.num_heads, self.site().value_dim, dtype)
