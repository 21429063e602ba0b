"""Wall attention: each channel of a key fades by gates that the later tokens decide."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from lcx import lanes as L
from lcx.domains import Finite
from lcx.layers import Dense
from lcx.positions import Position
from lcx.types import wide


class Wall(Position):
    """Wall attention: z_ij = sum_n q_in k_jn exp(P_in - P_jn), P the running sum of log f.

    f_tn = sigmoid(W x_t + b) for each key head and channel, b starting at `gate_bias` (0.9997):
    the vector gate of gated linear attention, inside the exponent of a softmax. With constant gates
    it is xPos without the rotation. Gates are per key head; the reference (flash-linear-attention,
    naive form) has them per query head, which is the same without grouped queries.
    """

    gate_bias: Finite = 8.0

    structure: ClassVar[str] = "PATH"
    paper: ClassVar[str] = "https://github.com/fla-org/flash-linear-attention"
    content: ClassVar[bool] = True
    represents: ClassVar[bool] = True

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: L.Last) -> tuple[L.Lanes, Any]:
        shape = (self.site.num_kv_heads, self.site.rotary_dim)
        gate = Dense(shape, ("kv_heads", "head_dim"), use_bias=True, exact=True, name="gate",
                     bias_init=nn.initializers.constant(self.gate_bias))(wide(x))
        _, starts, carry = L.advance(seq, carry)
        log_gate = jax.numpy.where(starts[..., None, None], 0.0, jax.nn.log_sigmoid(gate))
        return L.Lanes(L.Diagonal(log_gate, content=True)), carry
