"""Multiplicative absolute positions: one trained vector of factors per id, on the input."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax

from lcx.domains import Count, NonNegative
from lcx.lanes import Sequence
from lcx.positions import Position
from lcx.positions.learned import look_up
from lcx.weights import free


class Multiplicative(Position):
    """Multiplicative absolute embedding (kexue.fm/archives/8130): x_i * P[id_i] per channel.

    P starts around 1, with deviation `scale` (no value is published); P = 1 is no position. rows
    and what happens outside of them: as `learned`, which never clamps. The formula is that of Su's
    survey, known here second-hand.
    """

    rows: Count | None = None
    scale: NonNegative = 0.02

    paper: ClassVar[str] = "https://kexue.fm/archives/8130"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(rows=100))


class Embed(nn.Module):
    """Multiplies x [B,T,D] by the vector of each id."""

    width: int
    train_length: int
    rows: int | None
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, tokens=None) -> jax.Array:
        rows = self.train_length if self.rows is None else self.rows
        spread = nn.initializers.normal(self.scale)
        around_one = lambda key, shape, dtype=float: 1.0 + spread(key, shape, dtype)
        init = free(around_one, ("positions", "width"))
        table = self.param("table", init, (rows, self.width))
        return x * look_up(table, seq).astype(x.dtype)
