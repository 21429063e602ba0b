"""GRAPE-M with content: RoPE along a clock whose rate each token decides."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx import lanes as L
from lcx.domains import Positive
from lcx.layers import Dense
from lcx.positions.rope import Rope
from lcx.types import wide, wide_dtype
from lcx.weights import free


@struct.dataclass
class Clock:
    """phase [B,1,P] of the last token, its own rate [B], the last token."""

    phase: jax.Array
    rate: jax.Array
    last: L.Last


class GrapeMContent(Rope):
    """Contextual GRAPE-M (arXiv:2512.07805): the id of RoPE becomes sum_{s<t} sigmoid((w . x_s + b)
    / scale), one clock for all heads, and the frequencies are learned.

    w starts at 0 and b where softplus(b) = 0.001. The sum excludes the token itself, so that token
    j's own rate lies between j and i > j. Checked against the authors' code (whose comments say
    softplus where it computes a sigmoid).
    """

    scale: Positive = 16.0

    structure: ClassVar[str] = "PATH"
    paper: ClassVar[str] = "arXiv:2512.07805"
    content: ClassVar[bool] = True
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def numbers(self) -> dict[str, np.ndarray]:
        return {}

    def init_carry(self, batch: int) -> Clock:
        zeros = lambda *shape: jnp.zeros((batch, *shape), wide_dtype())
        return Clock(zeros(1, self.width // 2), zeros(), L.nothing_seen(batch))

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Clock) -> tuple[L.Lanes, Any]:
        start = lambda key, shape: jnp.asarray(np.log(self.ladder()), jnp.float32)
        init = free(start, ("head_dim",))
        frequency = jnp.exp(wide(self.param("log_freq", init, (self.width // 2,))))
        slow = nn.initializers.constant(math.log(math.expm1(1e-3)))
        rate = Dense((1,), ("positions",), use_bias=True, init=nn.initializers.zeros_init(),
                     bias_init=slow, exact=True, name="rate")(wide(x))[..., 0]
        rate = jax.nn.sigmoid(rate / self.scale)
        before = jnp.concatenate([carry.rate[:, None], rate[:, :-1]], axis=1)
        _, starts, last = L.advance(seq, carry.last)
        step = jnp.where(starts, 0.0, before)[..., None, None] * frequency
        step = jnp.broadcast_to(step, (*x.shape[:2], self.site.num_kv_heads, step.shape[-1]))
        phase = L.running_phase(step[:, :, :1], carry.phase)
        lane = L.ContentRotation(jnp.broadcast_to(phase, step.shape), step, self.interleaved)
        return L.Lanes(lane), Clock(phase[:, -1], rate[:, -1], last)
