"""LRPE's rotation: RoPE with one ladder of frequencies for all heads together."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from lcx import lanes as L
from lcx.positions.rope import Rope, ladder


class LrpeRope(Rope):
    """Unitary form of LRPE (arXiv:2307.09270): pair m of head n turns at base^(-2 (n P + m)/(N K)).

    N key heads of K channels, P pairs of each: the first head has the fastest pairs, the last the
    slowest, where RoPE gives every head all of them. fraction: share of each head's channels that
    turn, 0.5 in "mix" form. One head: RoPE. The orthogonal map that the paper puts before it is
    part of the projections of queries and keys. A rotation that differs by head is told as its
    phases, from which only differences count. Checked against the first author's code
    (github.com/Doraemonzzz/xmixers, lrpe_type 1 and 2, fixed; earlier code learned it).
    """

    interleaved: bool = True

    paper: ClassVar[str] = "arXiv:2307.09270"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(fraction=0.5, interleaved=False))
    represents: ClassVar[bool] = True

    def ladder(self) -> np.ndarray:
        """Of all heads, one after another [N P]."""
        heads = self.site.num_kv_heads
        return ladder(self.base, heads * self.site.rotary_dim)[: heads * self.width // 2]

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        step, _, carry = L.advance(seq, carry)
        rotation = L.Rotation(self.number("frequency"))
        by_head = lambda ids: L.phase(rotation, ids).reshape(
            *ids.shape[:2], self.site.num_kv_heads, -1)
        return L.Lanes(L.ContentRotation(by_head(seq.ids), by_head(step), self.interleaved)), carry
