"""RoPE-Tie-v2: rows and columns share one ladder in turns, so that text is plain RoPE."""

from __future__ import annotations

from typing import ClassVar

from lcx.lanes import Rotation, Sequence
from lcx.positions.rope import Rope


class RopeTieV2(Rope):
    """RoPE-Tie-v2, or RoPE-TV (kexue.fm/archives/10352; HunyuanImage-3): pairs 0, 2, 4, ... of one
    ladder turn with axis 0 of the id (the row), pairs 1, 3, 5, ... with axis 1 (the column).

    Text has equal ids, or one axis: RoPE. Its image ids are `lcx.spans.rope_tie_v2`, centred and
    sometimes half-integers. A resolution r times the trained one is answered by the base
    base r^(d/(d-2)), which is `ntk`'s.
    """

    paper: ClassVar[str] = "https://kexue.fm/archives/10352"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def rotation(self, seq: Sequence) -> Rotation:
        axis = tuple(m % 2 for m in range(self.width // 2))
        return super().rotation(seq).replace(axis=axis)
