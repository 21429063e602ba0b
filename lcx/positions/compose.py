"""A stack of schemes: an id map over any scheme, a temperature over any rotation, two biases."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax

from lcx import positions
from lcx.lanes import Lanes, Sequence, Temperature


class Stack(positions.Position):
    """Several schemes at one site, in the order of the config.

    Id maps apply one after another, biases add, temperatures multiply; at most one transport, one
    map of values and one of logits.
    """

    parts: tuple[Any, ...] = ()

    @property
    def content(self) -> bool:
        return any(member.content for member in self._unbound())

    @property
    def relative(self) -> int:
        """Multiples of this shift change nothing; 0 if any shift may."""
        return math.lcm(*(int(member.relative) for member in self._unbound()))

    def init_read(self, batch: int) -> Any:
        return tuple(member.init_read(batch) for member in self._unbound())

    def read(self, tokens, seq: Sequence, carry: Any) -> tuple[Sequence, Any]:
        after = []
        for member, before in zip(self._unbound(), carry):
            seq, next_carry = member.read(tokens, seq, before)
            after.append(next_carry)
        return seq, tuple(after)

    def data_transform(self) -> positions.DataTransform | None:
        return positions.single([m.data_transform() for m in self._unbound()], "data transform")

    def remap(self, seq: Sequence, key=None) -> Sequence:
        for number, member in enumerate(self._unbound()):
            seq = member.remap(seq, None if key is None else jax.random.fold_in(key, number))
        return seq

    def init_carry(self, batch: int) -> Any:
        return tuple(member.init_carry(batch) for member in self._unbound())

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        found, after = [], []
        for number, (spec, before) in enumerate(zip(self.parts, carry)):
            name = f"{number}_{positions.label(spec)}"
            member = positions.make(spec, self.site, name=name)
            one, next_carry = member.lanes(x, seq, before)
            found.append(one)
            after.append(next_carry)
        factors = [one.temperature.factor for one in found if one.temperature is not None]
        temperature = None
        if factors:
            temperature = Temperature(factors[0])
            for factor in factors[1:]:
                temperature = Temperature(temperature.factor * factor)
        single = lambda lane: positions.single([getattr(one, lane) for one in found], lane)
        return Lanes(single("transport"), sum((one.bias for one in found), ()), temperature,
                     single("value"), single("logits")), tuple(after)

    def _unbound(self) -> list[positions.Position]:
        return [positions.make(spec, self.site, parent=None) for spec in self.parts]
