"""Which of the allowed keys a head reads: fixed sparse patterns (arXiv:1904.10509).

A pattern acts last, on the weights: biases, transports and operators on logits see the whole past.
It is a function (queries, keys, transport, rotary_dim) -> [B,H,T,S] bool. Those of this file count
the tokens of a document, so that packing and caches do not matter; `selected` has those that look
at the content.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lcx.ops.pairs import Keys, Queries


@dataclasses.dataclass(frozen=True)
class Strided:
    """Even heads read the last `stride` tokens, odd heads every `stride`-th one back from here."""

    stride: int
    heads: int

    core: ClassVar[str] = "sparse"

    def __call__(self, queries: Queries, keys: Keys, transport, rotary_dim: int) -> jax.Array:
        back = queries.seq.index[..., :, None] - keys.seq.index[..., None, :]
        local = (jnp.arange(self.heads) % 2 == 0)[:, None, None]
        return jnp.where(local, back[:, None] < self.stride, back[:, None] % self.stride == 0)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Heads read their own block of `stride` tokens, and `columns` tokens of each earlier block.

    Head h reads the (h mod groups)-th group of columns, counted from the end of the block.
    """

    stride: int
    columns: int
    groups: int
    heads: int

    core: ClassVar[str] = "sparse"

    def __call__(self, queries: Queries, keys: Keys, transport, rotary_dim: int) -> jax.Array:
        block = lambda seq: seq.index // self.stride
        own = block(queries.seq)[..., :, None] == block(keys.seq)[..., None, :]
        from_end = (self.stride - 1 - keys.seq.index % self.stride) // self.columns
        group = (jnp.arange(self.heads) % self.groups)[:, None, None]
        return own[:, None] | (from_end[:, None, None] == group)
