"""ALiBi: a penalty on the logit that grows linearly with the distance, one slope per head."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.positions import Position


class Alibi(Position):
    """Attention with linear biases (arXiv:2108.12409): B_ij = -slope_h (id_i - id_j).

    As increments of -slope x step it is the scalar decay e^-slope of a linear mixer (RetNet).
    Without a causal mask: -slope |id_i - id_j|. Ids must not fall within a document: NaN.
    """

    structure: ClassVar[str] = "SEP"
    paper: ClassVar[str] = "arXiv:2108.12409"

    def numbers(self) -> dict[str, np.ndarray]:
        return {"slope": slopes(self.site.num_heads)}

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: L.Last) -> tuple[L.Lanes, Any]:
        slope = self.number("slope")
        if not self.site.causal:
            return L.Lanes(bias=(L.Toeplitz(slope, symmetric),)), carry
        step, _, carry = L.advance(seq, carry)
        step = jnp.where(step < 0, jnp.nan, step)  # a decay cannot run backwards
        return L.Lanes(bias=(L.Separable(-slope * step[..., :1]),)), carry


def slopes(heads: int) -> np.ndarray:
    """Slopes [H], float64: 2^(-8h/H) if H is a power of 2; else those of the power of 2 below,
    then every second one of the power above."""
    power = 2 ** int(np.log2(heads))
    geometric = lambda count: 2.0 ** (-8.0 * np.arange(1, count + 1) / count)
    return np.concatenate([geometric(power), geometric(2 * power)[::2][: heads - power]])


def symmetric(slope, distance):
    """-slope |distance|: [...] -> [..., H]."""
    return -slope * jnp.abs(distance)[..., None]
