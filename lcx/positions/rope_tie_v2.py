"""RoPE-Tie-v2: RoPE-Tie, over ids of unit steps that take no more room than the patches."""

from __future__ import annotations

from typing import ClassVar

from lcx.positions.rope_tie import RopeTie


class RopeTieV2(RopeTie):
    """RoPE-Tie-v2, or RoPE-TV (kexue.fm/archives/10352; HunyuanImage-3): pairs 0, 2, 4, ... of one
    ladder turn with axis 0 of the id (the row), pairs 1, 3, 5, ... with axis 1 (the column).

    Text has equal ids, or one axis: RoPE. Its image ids are `lcx.spans.rope_tie_v2`, centred and
    sometimes half-integers. A resolution r times the trained one is answered by the base
    base r^(d/(d-2)), which is `ntk`'s.
    """

    paper: ClassVar[str] = "https://kexue.fm/archives/10352"
