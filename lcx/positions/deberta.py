"""DeBERTa: content meets relative position from both sides, three terms under one scale."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Pairwise, Sequence, Temperature, Tile
from lcx.positions import Position
from lcx.types import precise, wide
from lcx.weights import free


class Deberta(Position):
    """Disentangled attention (arXiv:2006.03654, v2 buckets): z_ij = [q_i . k_j + q_i . K_r + k_j .
    Q_r] / sqrt(3d), r the log-bucket of i - j.

    K, Q [2 span, H, d] are this layer's tables (in the checkpoints: one table projected by the
    layer's own q and k maps). The published v2 code reads the position-to-content term at the same
    r = bucket(i - j); the paper's bucket(j - i) is `paper_index`. buckets: near distances have a
    row each on both sides, then rows grow logarithmically up to max_distance.
    """

    buckets: Annotated[int, whole(4)] = 256
    max_distance: Count = 512
    paper_index: bool = False

    structure: ClassVar[str] = "PAIR"
    paper: ClassVar[str] = "arXiv:2006.03654"
    examples: ClassVar[tuple[dict, ...]] = (dict(buckets=8, max_distance=16),
                                            dict(buckets=8, max_distance=16, paper_index=True))
    represents: ClassVar[bool] = True

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        init = free(nn.initializers.normal(0.02),
                                            ("positions", "heads", "head_dim"))
        shape = (2 * self.buckets, self.site.num_heads, self.site.key_dim)
        rows = log_bucket(np.arange(self.max_distance + 1), self.buckets, self.max_distance)
        params = dict(keys=wide(self.param("keys", init, shape)), rows=wide(rows),
                      queries=wide(self.param("queries", init, shape)))
        third = Temperature(jnp.full((1, x.shape[1], 1), 3 ** -0.5))
        kernel = paper_bias if self.paper_index else bias
        return Lanes(bias=(Pairwise(params, kernel),), temperature=third), carry


def log_bucket(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket (not yet clipped) of distances >= 0, float64 on the host."""
    middle = buckets // 2
    if middle < 2 or max_distance <= middle + 1:
        raise ConfigError(f"deberta needs buckets >= 4 and max_distance > {middle + 1}, got "
                          f"buckets={buckets}, max_distance={max_distance}")
    far = np.log(np.maximum(distance, middle) / middle) / np.log((max_distance - 1) / middle)
    far = np.ceil(far * (middle - 1) - 1e-9) + middle
    return np.where(distance <= middle, distance, far).astype(np.float32)  # whole numbers


def bias(params, tile: Tile):
    """The two position terms x scale / sqrt(3), [B,H,T,S]."""
    return _bias(params, tile, 1)


def paper_bias(params, tile: Tile):
    """The same with the second term at the bucket of j - i."""
    return _bias(params, tile, -1)


def _bias(params, tile: Tile, sign: int):
    distance = tile.query_ids[..., :, None, 0] - tile.key_ids[..., None, :, 0]
    span = params["keys"].shape[0] // 2

    def row(distance):  # beyond max_distance the clip at the last row acts anyway
        rows = params["rows"]
        place = jnp.minimum(jnp.floor(jnp.abs(distance)), len(rows) - 1).astype(jnp.int32)
        signed = jnp.sign(distance) * rows[place]
        return jnp.clip(signed + span, 0, 2 * span - 1).astype(jnp.int32)

    by_query = precise("bthk,rhk->bhtr", tile.query, params["keys"])
    by_key = precise("bshk,rhk->bhrs", tile.key, params["queries"])
    batch, heads = by_query.shape[:2]
    fits = lambda index: jnp.broadcast_to(index[:, None], (batch, heads, *index.shape[1:]))
    first = jnp.take_along_axis(by_query, fits(row(distance)), axis=3)
    second = jnp.take_along_axis(by_key, fits(row(sign * distance)), axis=2)
    return (first + second) * (tile.scale * 3 ** -0.5)
