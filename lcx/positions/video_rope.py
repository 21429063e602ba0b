"""VideoRoPE: time turns the slowest pairs; rows and columns take turns on the others."""

from __future__ import annotations

from typing import ClassVar

from lcx.domains import Whole
from lcx.errors import ConfigError
from lcx.lanes import Rotation, Sequence
from lcx.positions.rope import Rope


class VideoRope(Rope):
    """VideoRoPE (arXiv:2502.05173): of 64 pairs, 0-47 read height and width in turns, even height,
    and 48-63 read time, whose low frequencies do not confuse far frames.

    time_pairs: of the axis (time, height, width) 0, a quarter if None (of two pairs none: rows and
    columns have one each, or `hope_video` would turn nothing). Text has equal ids, or one axis:
    RoPE. Its ids, frames along the diagonal, are `lcx.spans.video_rope`. A popular
    re-implementation puts time on pair 0 and height on the odd ones (17, 24, 23 pairs); this is the
    authors' layout (github.com/Wiselnn570/VideoRoPE: 16, 24, 24).
    """

    time_pairs: Whole | None = None

    paper: ClassVar[str] = "arXiv:2502.05173"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def rotation(self, seq: Sequence) -> Rotation:
        return super().rotation(seq).replace(axis=self.axis())

    def axis(self) -> tuple[int, ...]:
        """The axis of each pair."""
        pairs = self.width // 2
        time = self.time_pairs
        time = pairs - 2 * max(1, 3 * pairs // 8) if time is None else time
        if not 0 <= time <= pairs or (pairs - time) % 2:
            raise ConfigError(f"video_rope: {time} pairs of time leave {pairs - time} of {pairs} "
                              "for height and width; choose time_pairs so that it is even")
        return (1, 2) * ((pairs - time) // 2) + (0,) * time
