"""CABLE: each token adds its own penalty to all distances across it."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.layers import Dense
from lcx.positions import Position
from lcx.types import wide


class Cable(Position):
    """Context-aware biases (arXiv:2503.08067): B_ij = -sum of softplus(w_h . x_s + b_h) over
    j < s <= i.

    Since -softplus(z) = ln sigmoid(-z), this is FoX with the sign of its gate's projection turned
    round: the same family of models. Link function and the range of the sum are those of the
    authors' code (github.com/axiomlab/Cable, src/Cable.py), which does not divide q.k by sqrt(d);
    here the product keeps the mixer's scale.
    """

    structure: ClassVar[str] = "SEP"
    paper: ClassVar[str] = "arXiv:2503.08067"
    content: ClassVar[bool] = True

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: L.Last) -> tuple[L.Lanes, Any]:
        weight = Dense((self.site.num_heads,), ("heads",), use_bias=True, exact=True,
                       name="weight")(wide(x))
        _, starts, carry = L.advance(seq, carry)
        increment = jnp.where(starts[..., None], 0.0, -jax.nn.softplus(weight))
        return L.Lanes(bias=(L.Separable(increment, content=True),)), carry
