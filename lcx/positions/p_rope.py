"""p-RoPE: the slowest pairs of RoPE do not turn, the others keep their frequency."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Fraction, Positive
from lcx.errors import ConfigError
from lcx.positions.rope import Rope


class PRope(Rope):
    """p-RoPE (arXiv:2410.06205): the fastest floor(proportion x pairs) of RoPE's pairs turn.

    proportion: 1 is RoPE, 0 is NoPE; 0.75 was best in the paper, 0.25 with base 1e6 is in Gemma's
    global layers. factor divides all frequencies. Not partial RoPE (`fraction` of rope), which
    spreads all timescales over fewer channels. Checked against "proportional" of transformers.
    """

    proportion: Fraction = 0.75
    factor: Positive = 1.0

    paper: ClassVar[str] = "arXiv:2410.06205"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(proportion=0.5, factor=2.0))

    def ladder(self) -> np.ndarray:
        ladder = super().ladder() / self.factor
        return np.where(np.arange(len(ladder)) < self.kept(), ladder, 0.0)

    def kept(self) -> int:
        """How many pairs turn: the *kept* ones are rounded down (of 32, 0.3 keeps 9)."""
        if not 0 <= self.proportion <= 1:
            raise ConfigError(f"p_rope keeps a proportion from 0 to 1, not {self.proportion}")
        return int(self.proportion * self.width // 2)
