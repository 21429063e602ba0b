"""Abacus: every digit gets the trained vector of its place inside its number."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.errors import ConfigError
from lcx.lanes import Sequence
from lcx.positions import Position
from lcx.positions.learned import look_up


class Abacus(Position):
    """Abacus embedding (arXiv:2405.17399): x_i + P[place_i], the digits of all numbers alike.

    The data gives the places as one axis of the ids: 1, 2, ... along the digits of a number, least
    significant digit first (numbers must be written in that order), 0 for every other token, which
    reads row 0. In training one random offset from 0..max_offset is added to all places but 0, so
    that rows for longer numbers are trained as well. axis: of the ids; 0 is what other schemes of a
    stack read, so the places go to another. rows: of P, and what happens beyond them: as `learned`.
    Checked against the authors' code (github.com/mcleish7/arithmetic, abacus.py).
    """

    axis: int = 1
    rows: int = 1024
    max_offset: int = 99
    scale: float = 1.0

    paper: ClassVar[str] = "arXiv:2405.17399"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(axis=0), dict(axis=0, max_offset=5))

    def remap(self, seq: Sequence, key=None) -> Sequence:
        if key is None:
            return seq
        place = places(seq, self.axis)
        offset = jax.random.randint(key, (), 0, self.max_offset + 1)
        return seq.replace(ids=seq.ids.at[..., self.axis].add(jnp.where(place > 0, offset, 0)))


class Embed(nn.Module):
    """Adds the vector of each place to x [B,T,D]."""

    width: int
    axis: int
    rows: int
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.scale),
                                            ("positions", "width"))
        table = self.param("table", init, (self.rows, self.width))
        places(seq, self.axis)
        return x + look_up(table, seq, self.axis).astype(x.dtype)


def places(seq: Sequence, axis: int) -> jax.Array:
    """The ids of an axis [B,T]. Raises ConfigError where the data has no such axis."""
    if axis >= seq.ids.shape[-1]:
        raise ConfigError(f"abacus reads digit places from axis {axis} of the ids, but the data "
                          f"gives {seq.ids.shape[-1]}: add an axis with the place of each digit "
                          "(1 = least significant) and 0 elsewhere")
    return seq.ids[..., axis]
