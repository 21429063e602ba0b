"""GRAPE-A: ALiBi whose slopes the query and the key decide."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Lanes, Pairwise, Sequence, Tile
from lcx.positions import Position
from lcx.positions.alibi import slopes
from lcx.types import precise, wide
from lcx.weights import free, matrix


class GrapeA(Position):
    """Additive group representation, gated form (arXiv:2512.07805):
    B_ij = -D m_h softplus(w_h) (softplus(v.q_i / sqrt(d)) + softplus(u.k_j / sqrt(d))).

    D = id_i - id_j, m ALiBi's slopes, softplus(w) = 1 at the start, u and v [H,d] unit vectors.
    gates: "both", "query" or "key" keeps those terms. Without content it is ALiBi, with gates that
    are summed token by token FoX. Checked against the authors' code.
    """

    gates: str = "both"

    structure: ClassVar[str] = "PAIR"
    paper: ClassVar[str] = "arXiv:2512.07805"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(gates="key"))

    def numbers(self) -> dict[str, np.ndarray]:
        return {"slope": slopes(self.site.num_heads)}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        sides = dict(both=("query", "key"), query=("query",), key=("key",))
        if self.gates not in sides:
            raise ConfigError(f"grape_a has no gates '{self.gates}'"
                              + did_you_mean(self.gates, sides))
        heads, dim = self.site.num_heads, self.site.key_dim
        start = free(
            nn.initializers.constant(float(np.log(np.expm1(1.0)))), ("heads",))
        normal = matrix(nn.initializers.normal(dim ** -0.5),
                                              ("heads", "head_dim"))
        rate = self.number("slope") * jax.nn.softplus(wide(self.param("rate", start, (heads,))))
        params = {side: unit(wide(self.param(side, normal, (heads, dim))))
                  for side in sides[self.gates]}
        return Lanes(bias=(Pairwise(dict(params, rate=rate), bias),)), carry


def unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


def bias(params, tile: Tile):
    """-D rate (gate of the query + gate of the key), [B,H,T,S]."""
    gate = lambda side, x: jax.nn.softplus(
        precise("bthk,hk->bht", x, params[side]) * x.shape[-1] ** -0.5)
    total = 0.0
    if "query" in params:
        total = gate("query", tile.query)[..., None]
    if "key" in params:
        total = total + gate("key", tile.key)[..., None, :]
    distance = tile.query_ids[..., :, None, 0] - tile.key_ids[..., None, :, 0]
    return -distance[:, None] * params["rate"][:, None, None] * total
