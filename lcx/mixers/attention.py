"""Softmax attention: multi-head, grouped-query and multi-query, with QK-norm and a window."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
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
    query reads, itself included; gate: each channel of the heads' output times the sigmoid of a
    linear map of x, before the output projection (arXiv:2505.06708, Qwen3-Next); use_bias: biases
    of all projections (GPT-2, BLOOM, GPT-NeoX, gpt-oss), starting at 0.
    """

    num_heads: Count = 4
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    qk_norm: bool = False
    unit: str = ""
    window: Count | None = None
    gate: bool = False
    use_bias: bool = False

    paper: ClassVar[str] = "arXiv:1706.03762"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_kv_heads=2), dict(num_kv_heads=1, qk_norm=True), dict(window=5),
        dict(unit="both"), dict(gate=True, use_bias=True))

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
        query, key, value = self.projected(x)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.attend(query, key, value, seq, lanes, carry, state, scale=self.scale(),
                                 window=self.window, **self.options())
        return self.merged(x, out), state

    def projected(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query [B,T,H,K], key and value [B,T,N,K], before any transport."""
        heads, kv_heads = self.site().num_heads, self.site().num_kv_heads
        query = self.project("query", x, heads, "heads")
        key, value = (self.project(name, x, kv_heads, "kv_heads") for name in ("key", "value"))
        if self.qk_norm:  # before the transport: an affine norm after a rotation breaks relativity
            query = RmsNorm("head_dim", name="query_norm")(query)
            key = RmsNorm("head_dim", name="key_norm")(key)
        if self.unit not in ("", "key", "both"):
            raise ConfigError(f"unit={self.unit!r}: choose 'key', 'both' or '' for none")
        key = unit_length(key) if self.unit else key
        query = unit_length(query) if self.unit == "both" else query
        return query, key, value

    def merged(self, x: jax.Array, out: jax.Array) -> jax.Array:
        """The heads' output [B,T,H,K], gated and projected: [B,T,D]."""
        if self.gate:
            out = out * jax.nn.sigmoid(self.project("gate", x, self.site().num_heads, "heads"))
        return Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                     use_bias=self.use_bias, name="out")(out)

    def project(self, name: str, x: jax.Array, count: int, axis: str) -> jax.Array:
        """A linear map of x to `count` heads."""
        return Dense((count, self.site().key_dim), (axis, "head_dim"), use_bias=self.use_bias,
                     name=name)(x)

    def scale(self) -> float:
        """Factor of the products: 1/sqrt(d), or 1 where keys have unit length."""
        return 1.0 if self.unit else self.site().key_dim**-0.5

    def options(self) -> dict[str, Any]:
        """What a variant of this layer tells the op beside the window; it may make parameters."""
        return {}

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_kv_heads, site.key_dim, site.key_dim,
                                dtype, self.window)


def unit_length(x: jax.Array) -> jax.Array:
    """Vectors [B,T,H,K] divided by their length; nothing stays nothing."""
    square = jnp.sum(wide(x) ** 2, -1, keepdims=True)
    return (wide(x) * jax.lax.rsqrt(square + 1e-12)).astype(x.dtype)
