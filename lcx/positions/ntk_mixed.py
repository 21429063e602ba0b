"""NTK-mixed: each pair is slowed by a factor that grows along the ladder, up to the scale."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import NonNegative, Positive
from lcx.positions.rope import Rope


class NtkMixed(Rope):
    """Mixed-radix NTK (kexue.fm/archives/9706): pair m = 1..d/2 is slowed by exp(a m^exponent).

    a (d/2)^exponent = ln factor, so that the slowest pair is interpolated by the whole factor
    (length wanted / length trained on). exponent: 0 is PI, 1 is the post's "NTK-fixed"
    (factor^(2m/d)), between them the fast pairs give less; the post takes 0.625, its code 0.75.
    Best with log_n beside it. Checked against bojone/rerope (ntk_patch.py).
    """

    factor: Positive = 4.0
    exponent: NonNegative = 0.625

    paper: ClassVar[str] = "https://kexue.fm/archives/9706"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def ladder(self) -> np.ndarray:
        ladder = super().ladder()
        place = np.arange(1, len(ladder) + 1) / len(ladder)
        return ladder * self.factor ** -(place ** self.exponent)
