"""Abacus: every digit gets the trained vector of its place inside its number."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count, NonNegative, Whole
from lcx.errors import ConfigError
from lcx.positions import Position
from lcx.positions.learned import look_up
from lcx.weights import free


class Abacus(Position):
    """Abacus embedding (arXiv:2405.17399): x_i + P[place_i], the digits of all numbers alike.

    place: 1, 2, ... along a run of the tokens `digits` (by default 0 to 9 of the tokenizer
    "bytes"), 0 for every other token, which reads row 0. The paper counts from the least
    significant digit, so write numbers in that order. In training one random offset from
    0..max_offset is added to all places but 0, so that rows for longer numbers are trained as well.
    axis: of the ids, where the places go; 0 is what other schemes of a stack read, and places that
    the data gives there stay. rows: of P, and what happens beyond them: as `learned`.
    Checked against the authors' code (github.com/mcleish7/arithmetic, abacus.py).
    """

    digits: tuple[Whole, ...] = tuple(range(48, 58))
    axis: Whole = 1
    rows: Count = 1024
    max_offset: Whole = 99
    scale: NonNegative = 1.0

    paper: ClassVar[str] = "arXiv:2405.17399"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(axis=0), dict(axis=0, max_offset=5))
    represents: ClassVar[bool] = True

    def init_read(self, batch: int) -> Any:
        return L.nothing_seen(batch, axes=0), jnp.zeros((batch,), jnp.int32)

    def read(self, tokens, seq: L.Sequence, carry: Any) -> tuple[L.Sequence, Any]:
        last, place = carry
        if seq.ids.shape[-1] > self.axis:
            return seq, carry
        digit = jnp.isin(tokens, jnp.asarray(self.digits))
        _, starts, last = L.advance(seq, last)
        inside, place = L.place_in_run(~digit, starts, place)
        return L.with_axis(seq, self.axis, jnp.where(digit, inside + 1, 0)), (last, place)

    def remap(self, seq: L.Sequence, key=None) -> L.Sequence:
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
    def __call__(self, x: jax.Array, seq: L.Sequence, tokens=None) -> jax.Array:
        init = free(nn.initializers.normal(self.scale),
                                            ("positions", "width"))
        table = self.param("table", init, (self.rows, self.width))
        places(seq, self.axis)
        return x + look_up(table, seq, self.axis).astype(x.dtype)


def places(seq: L.Sequence, axis: int) -> jax.Array:
    """The ids of an axis [B,T]. Raises ConfigError where nothing has put them there."""
    if axis >= seq.ids.shape[-1]:
        raise ConfigError(f"abacus needs the tokens, or digit places on axis {axis} of the ids, "
                          f"which has {seq.ids.shape[-1]}: run it in a model, or add an axis with "
                          "the place of each digit (1 = least significant) and 0 elsewhere")
    return seq.ids[..., axis]
