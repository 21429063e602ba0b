"""MHRoPE: whole heads, each with a full ladder, are divided among the axes of the id."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Whole
from lcx.errors import ConfigError
from lcx.positions.rope import Rope


class MultiHeadRope(Rope):
    """Multi-head RoPE (arXiv:2510.23095): of the key heads, `heads` turn with time, height and
    width; those that are left over do not turn.

    heads: (2, 3, 3) of 8 as published; None gives height and width 3/8 each and time the rest.
    Query heads go with their key head. Text, with equal ids or one axis, is RoPE in every head that
    turns. Its ids are `lcx.spans.spatial_reset` or qwen3_vl's. A rotation that differs by head is
    told as its phases, from which only differences count. Checked against the authors' code
    (github.com/JJJYmmm/Multimodal-RoPEs).
    """

    heads: tuple[Whole, ...] | None = None

    paper: ClassVar[str] = "arXiv:2510.23095"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(heads=(0, 1)))

    def shares(self) -> tuple[int, ...]:
        """Heads of each axis. Raises ConfigError where they are more than there are."""
        total = self.site.num_kv_heads
        space = 3 * total // 8
        shares = self.heads or (total - 2 * space, space, space)
        if sum(shares) > total or min(shares) < 0:
            raise ConfigError(f"multi_head_rope: heads {tuple(shares)} are more than the {total} "
                              "key heads")
        return tuple(shares)

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch, len(self.shares()))

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        axes = max([a + 1 for a, count in enumerate(self.shares()) if count], default=1)
        if 1 < seq.ids.shape[-1] < axes:
            raise ConfigError(f"multi_head_rope reads {axes} axes of the ids, the sequence has "
                              f"{seq.ids.shape[-1]}; give one axis (text) or all of them")
        step, _, carry = L.advance(seq, carry)
        rotation = L.Rotation(self.number("frequency"))
        phases, steps = self.by_head(rotation, seq.ids), self.by_head(rotation, step)
        return L.Lanes(L.ContentRotation(phases, steps, self.interleaved)), carry

    def by_head(self, rotation: L.Rotation, ids):
        """Phases [B,T,N,P] of ids [B,T,A]: each head's of its own axis."""
        found = []
        for axis, count in enumerate(self.shares()):
            one = ids[..., min(axis, ids.shape[-1] - 1)][..., None]
            found += [L.phase(rotation, one)] * count
        still = jnp.zeros((*ids.shape[:2], self.width // 2), ids.dtype)
        return jnp.stack(found + [still] * (self.site.num_kv_heads - len(found)), 2)
