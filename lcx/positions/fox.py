"""FoX, the forgetting transformer: each token's gate fades all the tokens before it."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Positive
from lcx.layers import Dense
from lcx.positions import Position
from lcx.types import wide


class Fox(Position):
    """Forgetting attention (arXiv:2503.02130): B_ij = sum of log f_s over j < s <= i.

    f_s = sigmoid(w_h . x_s + b_h) per head: ALiBi with slopes that the content decides, and the
    scalar gate of a gated linear mixer. The gate of token j itself is not counted: B_ii = 0.
    times: (shortest, longest) number of tokens T to remember: b starts with sigmoid(b) = e^(-1/T),
    T log-uniform between them; None starts b at 0 (f = 1/2).
    """

    times: tuple[Positive, Positive] | None = None

    structure: ClassVar[str] = "SEP"
    paper: ClassVar[str] = "arXiv:2503.02130"
    content: ClassVar[bool] = True
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(times=(2.0, 64.0)))
    represents: ClassVar[bool] = True

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: L.Last) -> tuple[L.Lanes, Any]:
        gate = Dense((self.site.num_heads,), ("heads",), use_bias=True, bias_init=self._bias,
                     exact=True, name="gate")(wide(x))
        _, starts, carry = L.advance(seq, carry)
        increment = jnp.where(starts[..., None], 0.0, jax.nn.log_sigmoid(gate))
        return L.Lanes(bias=(L.Separable(increment, content=True),)), carry

    def _bias(self, key, shape, dtype=jnp.float32):
        if self.times is None:
            return jnp.zeros(shape, dtype)
        shortest, longest = jnp.log(jnp.array(self.times, dtype))
        return bias(jnp.exp(jax.random.uniform(key, shape, dtype, shortest, longest)))


def bias(time):
    """The b with sigmoid(b) = e^(-1/time)."""
    return -jnp.log(jnp.expm1(1.0 / time))
