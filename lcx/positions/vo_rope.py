"""VO-RoPE: values turn by their position, outputs turn back by theirs."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn

from lcx.lanes import Lanes, Sequence, ValueRotation
from lcx.positions.rope import Rope


class VoRope(Rope):
    """Rotation of values and outputs: o_i = R_i^T sum_j w_ij R_j v_j = sum_j w_ij R_{j-i} v_j.

    Position enters through what is read instead of where one looks. both: queries and keys turn
    too ("QKVO"). Under weights gamma^(i-j) it is a complex linear recurrence. Source:
    https://kexue.fm/archives/10862.
    """

    both: bool = False

    paper: ClassVar[str] = "https://kexue.fm/archives/10862"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(both=True))
    represents: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """Channels that turn: of queries and of values alike, so the shorter one decides."""
        return min(super().width, self.site.value_dim // 2 * 2 or super().width)

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        rotation = self.rotation(seq)
        return Lanes(rotation if self.both else None, value=ValueRotation(rotation)), carry
