"""Linear attention: the kernel elu + 1 in place of the softmax's exponential."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.linear_family import LinearMixer
from lcx.types import wide


class LinearAttention(LinearMixer):
    """Linear attention with phi = elu + 1 (arXiv:2006.16236): sum_j phi(q_i).phi(k_j) v_j / sum.

    num_kv_heads: key/value heads, num_heads if None; head_dim: width/num_heads if None;
    normaliser: "sum" divides by the sum of the weights, with untransported features (RoFormer,
    arXiv:2104.09864); None leaves it out and takes an RMS norm of each head's output instead
    (arXiv:2210.10340). query, key, value, out start normal with variance 1/fan_in.
    """

    num_heads: Count = 4
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    normaliser: str | None = "sum"

    paper: ClassVar[str] = "arXiv:2006.16236"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_kv_heads=2, normaliser=None))

    def site(self) -> Site:
        kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % kv_heads:
            raise ConfigError(f"num_kv_heads={kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = self.head_dim or self.width // self.num_heads
        return Site(self.num_heads, kv_heads, dim, dim, self.width, self.train_length,
                    value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        heads, kv_heads, dim = site.num_heads, site.num_kv_heads, site.key_dim
        query = _feature(Dense((heads, dim), ("heads", "head_dim"), name="query")(x))
        key = _feature(Dense((kv_heads, dim), ("kv_heads", "head_dim"), name="key")(x))
        value = Dense((kv_heads, dim), ("kv_heads", "head_dim"), name="value")(x)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.mix(query, key, value, seq, lanes, carry, state,
                              normaliser=self.normaliser)
        if self.normaliser is None:
            out = RmsNorm("head_dim", name="norm")(out)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_kv_heads, site.key_dim, dtype,
                                normaliser=self.normaliser)


def _feature(x: jax.Array) -> jax.Array:
    """elu + 1 without its cancellation: exp(x) below zero, 1 + x above. In the dtype of x."""
    y = wide(x)
    return jnp.where(y > 0, 1 + y, jnp.exp(jnp.minimum(y, 0))).astype(x.dtype)
