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


class Attention(SoftmaxMixer):
    """Softmax attention (arXiv:1706.03762; grouped queries arXiv:2305.13245).

    num_kv_heads: key/value heads, num_heads if None, 1 for multi-query; head_dim: width/num_heads
    if None; qk_norm: RMS norm of queries and keys before any transport (arXiv:2302.05442);
    window: keys that a query reads, itself included.
    """

    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    window: int | None = None

    paper: ClassVar[str] = "arXiv:1706.03762"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_kv_heads=2), dict(num_kv_heads=1, qk_norm=True), dict(window=5))

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
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        out, state = self.attend(query, key, value, seq, lanes, carry, state,
                                 scale=dim**-0.5, window=self.window)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_kv_heads, site.key_dim, site.key_dim,
                                dtype, self.window)
