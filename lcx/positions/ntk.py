"""NTK-aware scaling: a larger base, so that slow pairs are interpolated and fast ones are not."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Positive
from lcx.errors import ConfigError
from lcx.positions.rope import Rope, ladder


class Ntk(Rope):
    """NTK-aware RoPE (described in arXiv:2309.00071): base x factor^(d/(d-2)).

    The fastest pair stays, the slowest turns exactly `factor` times slower, as in PI.
    factor: length wanted / length trained on; 1 is RoPE.
    """

    factor: Positive = 4.0

    paper: ClassVar[str] = "arXiv:2309.00071"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def ladder(self) -> np.ndarray:
        if self.factor <= 0:
            raise ConfigError(f"ntk stretches wavelengths by a factor above 0, not {self.factor}")
        return ladder(self.base * self.factor ** exponent(self.width), self.width)


def exponent(width: int) -> float:
    """d/(d-2). Raises ConfigError where there is no slowest pair apart from the fastest."""
    if width < 4:
        raise ConfigError(f"NTK scaling needs at least 4 rotated channels, not {width}")
    return width / (width - 2)
