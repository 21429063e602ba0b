"""PI: position interpolation, all positions squeezed back into the trained range."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Positive
from lcx.errors import ConfigError
from lcx.positions.rope import Rope


class Pi(Rope):
    """Position interpolation (arXiv:2306.15595): RoPE at id / factor.

    factor: length wanted / length trained on; 1 is RoPE.
    """

    factor: Positive = 4.0

    paper: ClassVar[str] = "arXiv:2306.15595"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def ladder(self) -> np.ndarray:
        if self.factor <= 0:
            raise ConfigError(f"pi divides ids by a factor above 0, not {self.factor}")
        return super().ladder() / self.factor
