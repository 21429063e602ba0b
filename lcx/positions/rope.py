"""RoPE: each pair of channels turns by the id times its own frequency."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from lcx.domains import AtLeastOne, PositiveFraction
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Rotation, Sequence, split_frequency
from lcx.positions import Position


class Rope(Position):
    """Rotary position embedding (arXiv:2104.09864): score depends on q, k and id_i - id_j.

    base: of the ladder base^(-2m/d); fraction: share of the channels that turn, with the ladder
    spread over them (GPT-NeoX 0.25); interleaved: pairs (2m,2m+1) (RoFormer, GPT-J, DeepSeek)
    instead of half-split (m,m+d/2) (GPT-NeoX, Llama): the same up to a permutation of weights.
    """

    base: AtLeastOne = 10000.0
    fraction: PositiveFraction = 1.0
    interleaved: bool = False

    structure: ClassVar[str] = "GRP"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(interleaved=True), dict(fraction=0.5))
    paper: ClassVar[str] = "arXiv:2104.09864"
    represents: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """Channels that turn. Raises ConfigError unless it is even and positive."""
        width = int(self.site.rotary_dim * self.fraction)
        if width < 2 or width % 2:
            raise ConfigError(f"fraction {self.fraction} of {self.site.rotary_dim} channels is "
                              f"{width}: a rotation needs an even number of at least 2")
        return width

    def ladder(self) -> np.ndarray:
        """Frequencies [P] in radians per id, float64, fastest first. Scalings override this."""
        return ladder(self.base, self.width)

    def numbers(self) -> dict[str, np.ndarray]:
        return {"frequency": split_frequency(self.ladder())}

    def rotation(self, seq: Sequence) -> Rotation:
        """The lane value; schemes that do more than move the ladder extend it."""
        return Rotation(self.number("frequency"), interleaved=self.interleaved)

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        return Lanes(self.rotation(seq)), carry


def ladder(base: float, width: int) -> np.ndarray:
    """base^(-2m/width) for m = 0..width/2-1, float64."""
    return base ** (-2.0 * np.arange(width // 2) / width)
