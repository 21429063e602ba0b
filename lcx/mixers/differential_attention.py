"""Differential attention: the difference of two softmax maps, so that common noise cancels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import BelowOne, Count, Whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm
from lcx.mixers.softmax_family import SoftmaxMixer
from lcx.ops import pairs
from lcx.types import wide
from lcx.weights import free


class DifferentialAttention(SoftmaxMixer):
    """Differential attention (arXiv:2410.05258): o = norm((A_1 - lambda A_2) V) (1 - lambda_init).

    A head has two queries and two keys of head_dim channels, one value of twice as many, and a
    scheme's lanes act on both maps alike. lambda = exp(q_1 . k_1) - exp(q_2 . k_2) + lambda_init,
    of four learned vectors that the heads of a layer share, N(0, 0.1^2) at first; norm: RMS of each
    head (eps 1e-5), its gain shared by the heads.

    head_dim: width / (2 num_heads) if None; layer: number of this layer from 0, which sets
    lambda_init = 0.8 - 0.6 exp(-0.3 layer), from 0.2 up to 0.8; a config that shares one mixer
    between layers sets lambda_init itself; affine: the gain (the authors' code has it, Hugging
    Face's DiffLlama has not); window: as in `attention`.
    """

    num_heads: Count = 2
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    layer: Whole = 0
    lambda_init: BelowOne | None = None
    affine: bool = True
    window: Count | None = None

    paper: ClassVar[str] = "arXiv:2410.05258"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_kv_heads=1), dict(layer=3, window=5, affine=False))

    def site(self) -> Site:
        kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % kv_heads:
            raise ConfigError(f"num_kv_heads={kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim is None and self.width % (2 * self.num_heads):
            raise ConfigError(f"2 x num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = self.head_dim or self.width // (2 * self.num_heads)
        return Site(self.num_heads, kv_heads, dim, dim, self.width, self.train_length,
                    value_dim=2 * dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        heads, kv_heads, dim = site.num_heads, site.num_kv_heads, site.key_dim
        query = Dense((heads, 2, dim), ("heads", None, "head_dim"), name="query")(x)
        key = Dense((kv_heads, 2 * dim), ("kv_heads", "head_dim"), name="key")(x)
        value = Dense((kv_heads, 2 * dim), ("kv_heads", "value_dim"), name="value")(x)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        keys, total, slot, state = self.remember(key, value, seq, lanes, carry, state)

        def attend(number):
            part = slice(number * dim, (number + 1) * dim)
            queries = pairs.Queries(query[..., number, :], seq, total,
                                    pairs.path_of(lanes.transport), pairs.extras_of(lanes), slot)
            return self.softmax(queries, keys.replace(key=keys.key[..., part]), lanes,
                                (key[..., part], value), scale=dim**-0.5, window=self.window)

        first, second = attend(0), attend(1)
        start = self.start()
        out = first - (self.balance(dim) + start).astype(x.dtype) * second
        out = RmsNorm("value_dim", 1e-5, self.affine, name="norm")(out) * (1 - start)
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def start(self) -> float:
        """lambda_init."""
        if self.lambda_init is not None:
            return self.lambda_init
        return 0.8 - 0.6 * math.exp(-0.3 * self.layer)

    def balance(self, dim: int) -> jax.Array:
        """What is learned of lambda: 0 where the products of the four vectors agree."""
        init = free(nn.initializers.normal(0.1), ("head_dim",))
        vector = lambda name: wide(self.param(name, init, (dim,)))
        product = lambda n: jnp.sum(vector(f"lambda_query_{n}") * vector(f"lambda_key_{n}"))
        return jnp.exp(product(1)) - jnp.exp(product(2))

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site = self.site()
        return self.empty_state(batch, max_length, site.num_kv_heads, 2 * site.key_dim,
                                site.value_dim, dtype, self.window)
