"""RoPE-2D: half of the pairs turn with the row of a patch, half with its column."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.domains import Whole
from lcx.errors import ConfigError
from lcx.lanes import Rotation, Sequence
from lcx.positions.rope import Rope, ladder


class Rope2d(Rope):
    """Axial RoPE of vision transformers (arXiv:2403.13298): pairs divided among the axes of an id,
    *each with a whole ladder of its own*, base^(-2m/(2 pairs of the axis)).

    sections: pairs of each axis, equal shares if None. Scores depend on the difference of the ids
    of each axis. Because the ladders restart, text with equal ids on all axes is not RoPE: for that
    see m_rope and rope_tie_v2, which share one ladder. Ids of a lone image: `lcx.spans.grid`.
    Checked against the vision rotary embedding of Qwen2-VL in transformers.
    """

    sections: tuple[Whole, ...] | None = None

    axes: ClassVar[int] = 2
    paper: ClassVar[str] = "arXiv:2403.13298"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(interleaved=True))

    def rotation(self, seq: Sequence) -> Rotation:
        axis = tuple(a for a, count in enumerate(self.shares()) for _ in range(count))
        return super().rotation(seq).replace(axis=axis)

    def ladder(self) -> np.ndarray:
        return np.concatenate([ladder(self.base, 2 * count) for count in self.shares()])

    def shares(self) -> tuple[int, ...]:
        """Pairs of each axis; what equal shares leave over goes to the first axes."""
        pairs, axes = self.width // 2, self.axes
        shares = tuple(self.sections or ((pairs + axes - 1 - a) // axes for a in range(axes)))
        if len(shares) != axes or sum(shares) != pairs or min(shares) < 0:
            raise ConfigError(f"sections {shares} must divide the {pairs} rotated pairs among "
                              f"{axes} axes")
        return shares
