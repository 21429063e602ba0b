"""Softmax attention: multi-head, grouped-query and multi-query, with QK-norm and a window."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.softmax_family import SoftmaxMixer
from lcx.types import wide


class Attention(SoftmaxMixer):
    """Softmax attention (arXiv:1706.03762; grouped queries arXiv:2305.13245).

    num_kv_heads: key/value heads, num_heads if None, 1 for multi-query; head_dim: width/num_heads
    if None; qk_norm: RMS norm of queries and keys before any transport (arXiv:2302.05442);
    unit: "key" divides keys by their length and leaves 1/sqrt(d) out (KeyNorm), "both" queries too
    (CosA, whose temperature is the scheme `cos_a`; kexue.fm/archives/9859); window: keys that a
    query reads, itself included.
    """

    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    unit: str = ""
    window: int | None = None

    paper: ClassVar[str] = "arXiv:1706.03762"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_kv_heads=2), dict(num_kv_heads=1, qk_norm=True), dict(window=5),
        dict(unit="both"))

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
        query = Dense((heads, dim), ("heads", "head_dim"), name="query")(x)
        key = Dense((kv_heads, dim), ("kv_heads", "head_dim"), name="key")(x)
        value = Dense((kv_heads, dim), ("kv_heads", "head_dim"), name="value")(x)
        if self.qk_norm:  # before the transport: an affine norm after a rotation breaks relativity
            query = RmsNorm("head_dim", name="query_norm")(query)
            key = RmsNorm("head_dim", name="key_norm")(key)
        if self.unit not in ("", "key", "both"):
            raise ConfigError(f"unit={self.unit!r}: choose 'key', 'both' or '' for none")
        key = unit_length(key) if self.unit else key
        query = unit_length(query) if self.unit == "both" else query
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.attend(query, key, value, seq, lanes, carry, state,
                                 scale=1.0 if self.unit else dim**-0.5, window=self.window)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_kv_heads, site.key_dim, site.key_dim,
                                dtype, self.window)


def unit_length(x: jax.Array) -> jax.Array:
    """Vectors [B,T,H,K] divided by their length; nothing stays nothing."""
    square = jnp.sum(wide(x) ** 2, -1, keepdims=True)
    return (wide(x) * jax.lax.rsqrt(square + 1e-12)).astype(x.dtype)
