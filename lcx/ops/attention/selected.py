"""Patterns that look at the content: each query reads the blocks of keys that fit it best.

The score of a block is the mean over its tokens of the transported products q . k, without bias
and temperature, so that under RoPE it is the query times the mean of the rotated keys. No gradient
flows through a choice. Equal scores: the earlier block.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lcx.ops import pairs
from lcx.ops.attention import blocks as B
from lcx.ops.attention.weights import over_visible


@dataclasses.dataclass(frozen=True)
class Best:
    """MoBA (arXiv:2502.13189): of the earlier blocks and the own one, which is always among them,
    the `top` best; every query head chooses for itself."""

    block: int
    top: int

    core: ClassVar[str] = "selected"

    def __call__(self, queries: pairs.Queries, keys: pairs.Keys, transport,
                 rotary_dim: int) -> jax.Array:
        blocks, score, seq = _scored(queries, keys, transport, rotary_dim, self.block)
        ahead = _ahead(queries.seq, seq, blocks)[:, None]
        past = pairs.mask(queries.seq, seq)[:, None]
        score = jnp.where(ahead == 0, jnp.inf, score)
        return blocks.spread(best(score, past | (ahead == 0), self.top))


@dataclasses.dataclass(frozen=True)
class BestOfGroup:
    """NSA as flash-linear-attention runs it (arXiv:2502.11089): the `top` blocks of largest
    probability under a softmax over whole earlier blocks, averaged over the query heads that share
    a key head; the `first` blocks of a document and the `recent` ones, the own block counted, are
    always among them."""

    block: int
    top: int
    scale: float
    first: int = 1
    recent: int = 2

    core: ClassVar[str] = "selected"

    def __call__(self, queries: pairs.Queries, keys: pairs.Keys, transport,
                 rotary_dim: int) -> jax.Array:
        blocks, score, seq = _scored(queries, keys, transport, rotary_dim, self.block)
        visible = pairs.mask(queries.seq, seq)[:, None]
        chance = over_visible(score * self.scale, visible)
        group = queries.query.shape[2] // keys.key.shape[2]
        chance = chance.reshape(chance.shape[0], -1, group, *chance.shape[2:]).mean(2)
        ahead = _ahead(queries.seq, seq, blocks)[:, None]
        start = (blocks.place < self.first)[:, None, None]
        forced = (ahead >= 0) & ((ahead < self.recent) | start)
        chosen = best(jnp.where(forced, jnp.inf, chance), visible | forced, self.top)
        return blocks.spread(jnp.repeat(chosen, group, axis=1))


def best(score: jax.Array, allowed: jax.Array, top: int) -> jax.Array:
    """The `top` largest of the allowed entries of each row, the earlier of equals: bool."""
    allowed = jnp.broadcast_to(allowed, score.shape)
    score = jnp.where(allowed, score, -jnp.inf)
    value, place = jax.lax.top_k(score, min(top, score.shape[-1]))
    value, place = value[..., -1:], place[..., -1:]
    before = jnp.arange(score.shape[-1]) <= place
    return allowed & ((score > value) | ((score == value) & before))


def _scored(queries, keys, transport, rotary_dim, size):
    """Blocks, their scores [B,H,T,C], and their last tokens."""
    blocks = B.blocks_of(keys, size)
    score = B.scores(queries, keys, transport, rotary_dim, blocks)
    return blocks, jax.lax.stop_gradient(score), B.sequence_of(keys, blocks)


def _ahead(queries, seq, blocks):
    """By how many blocks a query is ahead of a block of its document [B,T,C]: 0 for its own; -1
    for other documents and for what is no block."""
    ahead = queries.index[..., :, None] // blocks.size - blocks.place[..., None, :]
    same = blocks.place[..., None, :] >= 0
    if queries.segment is not None:
        same &= queries.segment[..., :, None] == seq.segment[..., None, :]
    return jnp.where(same, ahead, -1)
