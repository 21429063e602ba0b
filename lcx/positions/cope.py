"""CoPE: positions are counted by gates that read the content, not by tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.lanes import Lanes, Pairwise, Sequence, Tile
from lcx.positions import Position
from lcx.types import precise, wide
from lcx.weights import free


class Cope(Position):
    """Contextual position encoding (arXiv:2405.18719): B_ij = q_i . e[p_ij].

    p_ij = sum of sigmoid(q_i . k_t / sqrt(d)) over j <= t <= i counts what the query deems worth
    counting, cut at the last row; e [d,P] is shared by the heads, starts at zero and is read
    between two rows by linear interpolation. positions: P. scaled: the bias is divided by sqrt(d)
    like the product (the authors' default), or not (their "nodiv").
    """

    positions: Count = 64
    scaled: bool = True

    structure: ClassVar[str] = "PAIR"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(positions=6), dict(positions=8, scaled=False))
    paper: ClassVar[str] = "arXiv:2405.18719"
    represents: ClassVar[bool] = True

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        init = free(nn.initializers.zeros_init(),
                                            ("head_dim", "positions"))
        table = wide(self.param("table", init, (self.site.key_dim, self.positions)))
        kernel = scaled_bias if self.scaled else bias
        return Lanes(bias=(Pairwise(table, kernel, row_global=True),)), carry


def bias(table, tile: Tile):
    """q_i . e[p_ij]: table [K,P] and a tile with *all* keys of its rows -> [B,H,T,S]."""
    product = precise("bthk,bshk->bhts", tile.query, tile.key)
    gate = jnp.where(tile.mask[:, None], jax.nn.sigmoid(product * tile.scale), 0.0)
    place = jnp.cumsum(gate[..., ::-1], -1)[..., ::-1]  # from each key up to the query
    place = jnp.minimum(place, table.shape[1] - 1)
    below = jnp.floor(place)
    rows = precise("bthk,kp->bhtp", tile.query, table)
    low = jnp.take_along_axis(rows, below.astype(jnp.int32), -1)
    high = jnp.take_along_axis(rows, jnp.ceil(place).astype(jnp.int32), -1)
    return low + (place - below) * (high - low)


def scaled_bias(table, tile: Tile):
    """The same, divided by sqrt(d) as the product is."""
    return bias(table, tile) * tile.scale
