"""FIRE: a small network reads the distance as a share of the query's own position."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lcx.domains import Count, NonNegative
from lcx.lanes import Lanes, Rowwise, Sequence
from lcx.positions import Position
from lcx.types import precise, wide
from lcx.weights import free, matrix


class Fire(Position):
    """Functional interpolation (arXiv:2310.04418): B_ij = f(log(c D + 1) / log(c max(i, T) + 1)).

    D = id_i - id_j; f is an MLP 1 -> hidden -> heads with ReLU; c (0.1), and the threshold
    T = |threshold x m| with m (1), are learned. The argument stays within [0,1] at any length, so a
    longer text interpolates. Beyond T it depends on the query's id too: not relative. The authors'
    re-implementation used for the check (DAPE's) halves the threshold in one of its files.
    """

    hidden: Count = 32
    threshold: NonNegative = 512.0

    structure: ClassVar[str] = "ROW"
    paper: ClassVar[str] = "arXiv:2310.04418"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(threshold=4.0),)
    represents: ClassVar[bool] = True

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        scalar = lambda name, value: wide(self.param(
            name, free(nn.initializers.constant(value), ()), ()))
        hidden, heads = (self.hidden,), (self.site.num_heads,)
        weights = lambda name, shape, *axes: wide(self.param(
            name, matrix(nn.initializers.lecun_normal(), axes), shape))
        zeros = free(nn.initializers.zeros_init(), ("rank",))
        params = dict(
            c=scalar("c_scale", 0.1), threshold=self.threshold * scalar("threshold_scale", 1.0),
            inner=weights("inner", (1, *hidden), "positions", "rank"),
            offset=wide(self.param("offset", zeros, hidden)),
            outer=weights("outer", (*hidden, *heads), "rank", "heads"))  # a bias: a row constant
        return Lanes(bias=(Rowwise(params, kernel),)), carry


def argument(params, distance, query_id):
    """Normalised distance, in [0,1] for the past."""
    c = jnp.abs(params["c"])
    furthest = jnp.maximum(query_id, jnp.abs(params["threshold"]))
    return jnp.log1p(jnp.abs(params["c"] * distance)) / (jnp.log1p(c * furthest) + 1e-6)


def kernel(params, distance, query_id):
    """f of the argument: [...] -> [..., H]."""
    inner = argument(params, distance, query_id)[..., None] * params["inner"][0] + params["offset"]
    return precise("...r,rh->...h", jnp.maximum(inner, 0.0), params["outer"])
