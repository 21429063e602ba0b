"""Resonance RoPE: every wavelength is a whole number of tokens, so that phases repeat exactly."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Positive
from lcx.positions.yarn import Yarn


class Resonance(Yarn):
    """Resonance RoPE (arXiv:2403.00071): theta = 2 pi / round(2 pi / theta), after any scaling.

    A pair whose wavelength fits into the trained length then meets no new phase beyond it.
    factor 1 is Resonance RoPE; above it, YaRN's frequencies are rounded (Resonance YaRN), with
    all of YaRN's options. Checked against sheryc/resonance_rope, which rounds after scaling.
    """

    factor: Positive = 1.0

    paper: ClassVar[str] = "arXiv:2403.00071"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(factor=4.0))

    def ladder(self) -> np.ndarray:
        return 2 * np.pi / np.round(2 * np.pi / super().ladder())
