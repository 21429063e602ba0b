"""M-RoPE: a rotation whose pairs read different axes of the position id (time, height, width)."""

from __future__ import annotations

from typing import ClassVar

from lcx.domains import Whole
from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Rotation, Sequence
from lcx.positions.rope import Rope


class MRope(Rope):
    """Multimodal RoPE (arXiv:2409.12191): one ladder, its pairs divided among the axes of an id.

    sections: pairs of each axis; None takes the published shares, 1/4, 3/8, 3/8 chunked (16,24,24
    of 64) or 3/8, 5/16, 5/16 interleaved (24,20,20). arrangement: "chunked" gives each axis a run
    of pairs (Qwen2-VL), "interleaved" deals them out, time taking the rest, so that every axis
    has slow and fast pairs (Qwen3-VL), "distributed" repeats t t h w h w h w (Lumos-1,
    arXiv:2507.08801), with no sections. Text has equal ids or one axis: RoPE.
    """

    sections: tuple[Whole, ...] | None = None
    arrangement: str = "chunked"

    paper: ClassVar[str] = "arXiv:2409.12191"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(arrangement="interleaved"),
                                            dict(arrangement="distributed"))

    def rotation(self, seq: Sequence) -> Rotation:
        return super().rotation(seq).replace(axis=self.axis())

    def axis(self) -> tuple[int, ...]:
        """The axis of each pair. Raises ConfigError unless the sections fill the pairs."""
        pairs, kinds = self.width // 2, {"chunked": 6, "interleaved": 5, "distributed": 0}
        if self.arrangement not in kinds:
            raise ConfigError(f"m_rope has no arrangement '{self.arrangement}'"
                              + did_you_mean(self.arrangement, kinds))
        if self.arrangement == "distributed":
            if self.sections is not None:
                raise ConfigError("m_rope: the distributed arrangement has no sections; leave them "
                                  "out")
            return tuple((0, 0, 1, 2, 1, 2, 1, 2)[m % 8] for m in range(pairs))
        space = kinds[self.arrangement] * pairs // 16
        sections = self.sections or (pairs - 2 * space, space, space)
        if sum(sections) != pairs or min(sections) < 0:
            raise ConfigError(f"m_rope: sections {tuple(sections)} must add up to the {pairs} "
                              "rotated pairs")
        if self.arrangement == "chunked":
            return tuple(a for a, count in enumerate(sections) for _ in range(count))
        axis = [0] * pairs
        for number, count in enumerate(sections[1:], 1):
            places = range(number, number + len(sections) * count, len(sections))
            if count and places[-1] >= pairs:
                raise ConfigError(f"m_rope: {count} pairs of axis {number} do not fit when every "
                                  f"{len(sections)}th of {pairs} is dealt to it; give axis 0 more")
            for place in places:
                axis[place] = number
        return tuple(axis)
