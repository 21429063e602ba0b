"""ALiBi: a penalty on the logit that grows linearly with the distance, one slope per head."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.domains import NonNegative
from lcx.errors import ConfigError, did_you_mean
from lcx.positions import Position


class Alibi(Position):
    """Attention with linear biases (arXiv:2108.12409): B_ij = -slope_h (id_i - id_j).

    As increments of -slope x step it is the scalar decay e^-slope of a linear mixer (RetNet), and
    B_ii = 0: implementations that add +slope_h j instead (fairseq) shift each row, which a softmax
    forgives and a linear mixer or a sink does not. Any number of heads. Ids must not fall within a
    document: NaN. Without a causal mask: both_sides "symmetric" is -slope |id_i - id_j|, and
    "separated" adds slope / 2 to the past, so that the sides differ (DeepMind, arXiv:2305.16843).
    factor: of all slopes (96 over the segments of BiPE).
    """

    factor: NonNegative = 1.0
    both_sides: str = "symmetric"

    structure: ClassVar[str] = "SEP"
    paper: ClassVar[str] = "arXiv:2108.12409"
    represents: ClassVar[bool] = True

    def numbers(self) -> dict[str, np.ndarray]:
        return {"slope": self.factor * slopes(self.site.num_heads)}

    def init_carry(self, batch: int) -> L.Last:
        return L.nothing_seen(batch)

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: L.Last) -> tuple[L.Lanes, Any]:
        slope = self.number("slope")
        if self.both_sides not in BOTH_SIDES:
            raise ConfigError(f"alibi: both_sides has no '{self.both_sides}'"
                              + did_you_mean(self.both_sides, BOTH_SIDES))
        if not self.site.causal:
            return L.Lanes(bias=(L.Toeplitz(slope, BOTH_SIDES[self.both_sides]),)), carry
        if self.both_sides != "symmetric":
            raise ConfigError(f"alibi: both_sides='{self.both_sides}' tells past from future, but "
                              "this mixer is causal and has no future; leave it out")
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


def separated(slope, distance):
    """-slope (|distance| - 1/2 in the past): no distance before equals one behind."""
    return -slope * (jnp.abs(distance) - 0.5 * (distance > 0))[..., None]


BOTH_SIDES = {"symmetric": symmetric, "separated": separated}
