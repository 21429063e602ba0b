"""Several queries, keys and values of one token (its ranks) as tokens of their own, in a row.

A row of T tokens of R ranks becomes one of T R tokens. The first of each R brings the gates, steps
and erasures of the token, the others none; all of them have its ids, segment and order, so that a
form over pairs lets each query of a token meet all of its keys. A recurrence takes them one after
another: a query has met only the keys up to its own, which `own.corrected` sets right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lcx import lanes as L


def each(tree, ranks: int):
    """Arrays [B,T,...] -> [B,T R,...]: what every rank of a token has."""
    return jax.tree.map(lambda a: jnp.repeat(a, ranks, axis=1), tree)


def once(x: jax.Array, ranks: int) -> jax.Array:
    """[B,T,...] -> [B,T R,...]: what happens once to a token, with its first rank; else 0."""
    first = (jnp.arange(ranks * x.shape[1]) % ranks == 0).reshape(-1, *[1] * (x.ndim - 2))
    return jnp.where(first, each(x, ranks), 0.0)


def sequence(seq: L.Sequence, ranks: int) -> L.Sequence:
    """The sequence of the ranks, `length` kept."""
    return each(seq.replace(length=None), ranks).replace(length=seq.length)


def lanes(value: L.Lanes, ranks: int) -> L.Lanes:
    """The lanes of a row of tokens as those of their ranks."""
    return value.replace(transport=_lane(value.transport, ranks),
                         bias=tuple(_lane(bias, ranks) for bias in value.bias),
                         temperature=each(value.temperature, ranks))


def _lane(lane, ranks: int):
    match lane:
        case L.Separable() | L.Diagonal():
            return lane.replace(increment=once(lane.increment, ranks))
        case L.ContentRotation():
            return lane.replace(phase=each(lane.phase, ranks), step=once(lane.step, ranks))
        case L.Householder():
            return L.Householder(each(lane.vector, ranks), once(lane.beta, ranks))
        case L.Pairwise():
            return lane.replace(extras=each(lane.extras, ranks))
    return lane  # static: it reads ids alone


def rows(value: L.Lanes, ranks: int) -> L.Lanes:
    """Lanes whose pairwise biases see one row of keys for each rank: one key of each token."""
    return value.replace(bias=tuple(
        bias.replace(kernel=_Rows(bias.kernel, ranks)) if isinstance(bias, L.Pairwise) else bias
        for bias in value.bias))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A pairwise kernel on the keys of each rank apart, so that what counts keys counts tokens."""

    kernel: Callable
    ranks: int

    def __call__(self, params, tile: L.Tile) -> jax.Array:
        parts = jnp.stack([self.kernel(params, self._row(tile, rank))
                           for rank in range(self.ranks)], -1)
        return parts.reshape(*parts.shape[:-2], -1)

    def _row(self, tile: L.Tile, rank: int) -> L.Tile:
        cut = lambda a: a[:, rank :: self.ranks]
        return dataclasses.replace(
            tile, key=cut(tile.key), mask=tile.mask[..., rank :: self.ranks],
            key_ids=cut(tile.key_ids), key_extras=jax.tree.map(cut, tile.key_extras))
