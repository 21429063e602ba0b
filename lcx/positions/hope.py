"""HoPE (high-frequency): pairs too slow to turn once within the trained length do not turn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Count
from lcx.positions.rope import Rope


class Hope(Rope):
    """High-frequency rotary position encoding (arXiv:2410.21216): RoPE where theta >= 2 pi / L0.

    A slower pair never completes a period in training, so the rest stays as it is: p-RoPE with a
    proportion that follows from the length. original_length: L0, train_length if None. Two other
    methods share the name: a video layout (arXiv:2505.20444), hyperbolic maps (arXiv:2509.05218).
    The threshold is second-hand: two re-implementations agree, authors' code was not seen.
    """

    original_length: Count | None = None

    paper: ClassVar[str] = "arXiv:2410.21216"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(original_length=40))

    def ladder(self) -> np.ndarray:
        ladder = super().ladder()
        slowest = 2 * np.pi / (self.original_length or self.site.train_length)
        return np.where(ladder >= slowest, ladder, 0.0)
