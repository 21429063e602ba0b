"""Learned absolute positions: one trained vector per id, added to the input."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, NonNegative
from lcx.errors import TableEnd
from lcx.lanes import Sequence, known
from lcx.positions import Position
from lcx.weights import free


class Learned(Position):
    """Learned absolute embedding (GPT-2, BERT; arXiv:1810.04805): x_i + P[id_i].

    rows: ids that have a vector, train_length if None. It cannot extrapolate: an id without a
    vector (too large, negative, fractional) raises TableEnd where the ids are known while the
    program is traced, and gives NaN where they are not. Nothing is clamped.
    scale: initial deviation relative to the token embeddings (1 in GPT-2 and BERT).
    """

    rows: Count | None = None
    scale: NonNegative = 1.0

    paper: ClassVar[str] = "arXiv:1810.04805"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(rows=100, scale=0.1))
    represents: ClassVar[bool] = True


class Embed(nn.Module):
    """Adds the vector of each id to x [B,T,D]."""

    width: int
    train_length: int
    rows: int | None
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, tokens=None) -> jax.Array:
        rows = self.train_length if self.rows is None else self.rows
        init = free(nn.initializers.normal(self.scale),
                                            ("positions", "width"))
        table = self.param("table", init, (rows, self.width))
        return x + look_up(table, seq).astype(x.dtype)


def look_up(table, seq: Sequence, axis: int = 0) -> jax.Array:
    """The row of `table` [rows,D] of each id on an axis: [B,T,D], zero at padding.

    An id without a row raises TableEnd where the ids are known while the program is traced, and
    gives NaN where they are not.
    """
    rows = table.shape[0]
    if known(seq.ids, seq.segment):
        _refuse_outside(seq, rows, axis)
    ids = seq.ids[..., axis]
    inside, padding = _inside(ids, rows), _padding(seq.segment)
    vector = table[jnp.where(inside, ids, 0).astype(jnp.int32)]
    # padding is never read, but NaN would leak from it: 0 x NaN is NaN in a masked sum
    missing = jnp.where(padding, 0.0, jnp.nan).astype(table.dtype)
    return jnp.where(inside[..., None], vector, missing[..., None])


def _inside(ids, rows: int):
    return (ids >= 0) & (ids < rows) & (ids % 1 == 0)


def _padding(segment):
    return np.zeros((1, 1), bool) if segment is None else segment == 0


def _refuse_outside(seq: Sequence, rows: int, axis: int) -> None:
    """On the host, also inside a trace, where an operation of jnp would be staged."""
    ids = np.asarray(seq.ids)[..., axis]
    padding = _padding(None if seq.segment is None else np.asarray(seq.segment))
    inside = _inside(ids, rows) | padding
    if not inside.all():
        outside = np.broadcast_to(ids, inside.shape)[~inside]
        raise TableEnd(f"the position table has vectors for ids 0..{rows - 1}, not for "
                       f"{outside[-1]:g}: train with a larger `rows`, or test a scheme that "
                       "extrapolates")
