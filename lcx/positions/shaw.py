"""Shaw's relative positions: a learned vector per clipped distance, for keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lcx.domains import Whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Pairwise, Sequence, Tile, ValueTable
from lcx.positions import Position
from lcx.types import precise, wide
from lcx.weights import free


class Shaw(Position):
    """Relative position representations (arXiv:1803.02155): z_ij = q_i . (k_j + a_r) / sqrt(d),
    o_i = sum_j w_ij (v_j + b_r), r = the distance i - j clipped at `clip`.

    Tables are shared by the heads of a layer and start Xavier-uniform; a causal layer needs no
    negative distances. values: the second term, off in many reuses (and a mixer without values of
    its own size refuses it).
    """

    clip: Whole = 16
    values: bool = False

    structure: ClassVar[str] = "PAIR"
    paper: ClassVar[str] = "arXiv:1803.02155"
    examples: ClassVar[tuple[dict, ...]] = (dict(clip=4), dict(clip=4, values=True))

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if self.values and not self.site.value_dim:
            raise ConfigError("shaw with values=True needs a mixer that has values; leave it False")
        rows = self.clip + 1 if self.site.causal else 2 * self.clip + 1

        def table(name, size):
            init = free(nn.initializers.xavier_uniform(),
                                                ("positions", "head_dim"))
            return wide(self.param(name, init, (rows, size)))

        bucket, bias = (past, past_bias) if self.site.causal else (either_side, either_side_bias)
        value = ValueTable(table("values", self.site.value_dim), bucket) if self.values else None
        return Lanes(bias=(Pairwise(table("keys", self.site.key_dim), bias),), value=value), carry


def past(rows: int, distance):
    """Row of a distance >= 0, the last one from rows - 1 on; a future one takes row 0."""
    return jnp.clip(jnp.floor(distance), 0, rows - 1).astype(jnp.int32)


def either_side(rows: int, distance):
    """Row of a distance from -clip to clip, rows = 2 clip + 1; beyond, that of the end."""
    clip = rows // 2
    return (jnp.clip(jnp.trunc(distance), -clip, clip) + clip).astype(jnp.int32)


def past_bias(table, tile: Tile):
    """q_i . a_r / sqrt(d), [B,H,T,S]."""
    return _bias(table, tile, past)


def either_side_bias(table, tile: Tile):
    """The same where the future is seen too."""
    return _bias(table, tile, either_side)


def _bias(table, tile: Tile, bucket):
    distance = tile.query_ids[..., :, None, 0] - tile.key_ids[..., None, :, 0]
    index = bucket(table.shape[0], distance)[:, None]
    by_row = precise("bthk,rk->bhtr", tile.query, table) * tile.scale
    index = jnp.broadcast_to(index, (*by_row.shape[:3], index.shape[-1]))
    return jnp.take_along_axis(by_row, index, axis=-1)
