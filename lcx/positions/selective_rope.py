"""Selective RoPE: a rotation whose angle per token is read from the content."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx import lanes as L
from lcx.domains import AtLeastOne, Count
from lcx.layers import Dense
from lcx.ops import conv
from lcx.positions.rope import Rope
from lcx.types import wide, wide_dtype
from lcx.weights import matrix


@struct.dataclass
class Turned:
    """phase [B,N,P] of the last token, the convolution's tail, the last token."""

    phase: object
    conv: object
    last: L.Last


class SelectiveRope(Rope):
    """Selective RoPE (arXiv:2511.17388): pair m has turned by base^(-2m/d) sum_{s<=t} phi_sm.

    phi = conv(W_up W_down x^), x^ the head's slice of x at unit length, W of `rank`, a causal
    convolution of `window` tokens, no activation. phi constant over tokens is RoPE. Checked against
    the authors' torch path as the specification records it; their optional gate and bias on phi
    are off there and left out here.
    """

    base: AtLeastOne = 500000.0
    rank: Count = 16
    window: Count = 4

    structure: ClassVar[str] = "PATH"
    paper: ClassVar[str] = "arXiv:2511.17388"
    content: ClassVar[bool] = True
    examples: ClassVar[tuple[dict, ...]] = (dict(base=10000.0),)
    represents: ClassVar[bool] = True

    def numbers(self) -> dict[str, np.ndarray]:
        return {"rate": self.ladder()}

    def init_carry(self, batch: int) -> Turned:
        heads, pairs = self.site.num_kv_heads, self.width // 2
        tail = conv.init_state(batch, self.window, heads * pairs, wide_dtype())
        return Turned(jnp.zeros((batch, heads, pairs), wide_dtype()), tail, L.nothing_seen(batch))

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Turned) -> tuple[L.Lanes, Any]:
        heads, pairs, size = self.site.num_kv_heads, self.width // 2, x.shape[-1]
        if size % heads:
            raise ValueError(f"selective_rope slices the {size} channels of x by {heads} key heads")
        unit = wide(x).reshape(*x.shape[:2], heads, size // heads)
        unit *= jnp.minimum(1e6, jnp.sum(unit**2, -1, keepdims=True) ** -0.5)
        down = Dense((self.rank,), ("rank",), ("head_dim",), exact=True, name="down")(unit)
        angle = Dense((pairs,), ("head_dim",), ("rank",), exact=True, name="up")(down)
        kernel = self.param("conv", matrix(
            nn.initializers.normal(self.window ** -0.5), ("kernel", "kv_heads", "head_dim")),
            (self.window, heads, pairs))
        angle, tail = conv.short_conv(angle.reshape(*x.shape[:2], -1),
                                      wide(kernel).reshape(self.window, -1), state=carry.conv,
                                      segment=seq.segment)
        _, starts, last = L.advance(seq, carry.last)
        step = angle.reshape(*x.shape[:2], heads, pairs) * self.number("rate")
        step = jnp.where(starts[..., None, None], 0.0, step)
        phase = L.running_phase(step, carry.phase)
        lane = L.ContentRotation(phase, step, self.interleaved)
        return L.Lanes(lane), Turned(phase[:, -1], tail, last)
