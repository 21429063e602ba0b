"""NTK-by-parts: fast pairs stay, middle ones take NTK scaling, slow ones are interpolated."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Base, Count, Positive
from lcx.positions.ntk import exponent
from lcx.positions.rope import Rope, ladder
from lcx.positions.yarn import ends, ramp


class NtkByParts(Rope):
    """NTK-by-parts, the code that came before YaRN (its `PartNTK`): two ramps over the pairs.

    One ramp leads from NTK-aware frequencies to interpolated ones, between the pairs that turn
    1.25 and 0.75 times within the original length; a second from RoPE's own to the result,
    between 16 and 2 turns. factor: length wanted / original_length (train_length if None); 1 is
    RoPE. What arXiv:2309.00071 calls by this name has one ramp: yarn with attention_factor 1.
    Checked against jquesnelle/yarn (LlamaPartNTKScaledRotaryEmbedding.py).
    """

    base: Base = 10000.0
    factor: Positive = 4.0
    original_length: Count | None = None
    interpolated: tuple[Positive, Positive] = (1.25, 0.75)
    kept: tuple[Positive, Positive] = (16.0, 2.0)

    paper: ClassVar[str] = "https://github.com/jquesnelle/yarn"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(original_length=1000))

    def ladder(self) -> np.ndarray:
        theta = super().ladder()
        aware = ladder(self.base * self.factor ** exponent(self.width), self.width)
        slow = self.ramp(self.interpolated)
        scaled = theta / self.factor * slow + aware * (1.0 - slow)
        slow = self.ramp(self.kept)
        return scaled * slow + theta * (1.0 - slow)

    def ramp(self, turns: tuple[float, float]) -> np.ndarray:
        """From 0 at the pair that makes turns[0] turns to 1 at that of turns[1]."""
        length = self.original_length or self.site.train_length
        return ramp(*ends(*turns, self.width, self.base, length), self.width // 2)
