"""RoPE-Tie: rows and columns share one ladder in turns, so that text is plain RoPE."""

from __future__ import annotations

from typing import ClassVar

from lcx.lanes import Rotation, Sequence
from lcx.positions.rope import Rope


class RopeTie(Rope):
    """RoPE-Tie (kexue.fm/archives/10040): the row and the column of an id turn different pairs of
    RoPE's *own* ladder, so that text, of equal ids or one axis, is RoPE.

    Its image ids are `lcx.spans.rope_tie`, as far from the text before as from the text behind. The
    post leaves open which pairs are whose: here 0, 2, 4, ... and 1, 3, 5, ..., as in `rope_tie_v2`.
    Checked against a translation of the post; no code of it is public.
    """

    paper: ClassVar[str] = "https://kexue.fm/archives/10040"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def rotation(self, seq: Sequence) -> Rotation:
        axis = tuple(m % 2 for m in range(self.width // 2))
        return super().rotation(seq).replace(axis=axis)
