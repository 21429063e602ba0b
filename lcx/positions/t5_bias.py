"""T5's relative bias: one learned number per head and bucket of distances."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, whole
from lcx.errors import ConfigError
from lcx.lanes import EventuallyConstant, Lanes, Sequence
from lcx.positions import Position
from lcx.types import wide
from lcx.weights import free


class T5Bias(Position):
    """Bucketed relative bias (arXiv:1910.10683): B_ij = table[bucket(id_i - id_j), h].

    The first half of the buckets hold one distance each, the rest grow logarithmically up to
    max_distance; from the last bucket on the bias is constant. Without a causal mask each
    direction has half of the buckets. T5 shares one table among all layers (share_position).
    """

    num_buckets: Annotated[int, whole(2)] = 32
    max_distance: Count = 128

    structure: ClassVar[str] = "EVC"
    examples: ClassVar[tuple[dict, ...]] = (dict(num_buckets=8, max_distance=10),
                                            dict(num_buckets=12, max_distance=20))
    paper: ClassVar[str] = "arXiv:1910.10683"
    represents: ClassVar[bool] = True

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        causal, heads = self.site.causal, self.site.num_heads
        init = free(
            nn.initializers.normal(self.site.width ** -0.5), ("buckets", "heads"))
        table = wide(self.param("table", init, (self.num_buckets, heads)))
        one_side = bucket_of(self.num_buckets // (1 if causal else 2), self.max_distance)
        window = len(one_side) - 1
        if causal:
            return Lanes(bias=(EventuallyConstant(table[one_side], past, window),)), carry
        future = one_side[:0:-1] + self.num_buckets // 2
        both = table[np.concatenate([future, one_side])]
        return Lanes(bias=(EventuallyConstant(both, either_side, window),)), carry


def bucket_of(buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of the distances 0..w [w+1] int, where w is the first distance of the last bucket.

    Computed once in float64: a logarithm in the graph misplaces distances at the boundaries.
    """
    exact = buckets // 2
    if exact < 1 or max_distance <= exact:
        raise ConfigError(f"t5_bias with {buckets} buckets per direction needs at least 2 of them "
                          f"and max_distance > {exact}, not {max_distance}")
    distance = np.arange(max_distance + 1)
    growth = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    step = np.floor(growth * (buckets - exact) + 1e-9).astype(int)  # exact powers stay exact
    far = np.minimum(exact + step, buckets - 1)
    bucket = np.where(distance < exact, distance, far)
    return bucket[: np.argmax(bucket == buckets - 1) + 1]


def past(rows, distance):
    """Rows [w+1,H] of the distances 0..w; a longer one takes the last row, a future one row 0."""
    last = rows.shape[0] - 1
    return rows[jnp.clip(jnp.floor(distance), 0, last).astype(jnp.int32)]


def either_side(rows, distance):
    """Rows [2w+1,H] of the distances -w..w; those beyond take the row of their end."""
    last = rows.shape[0] // 2
    return rows[(jnp.clip(jnp.trunc(distance), -last, last) + last).astype(jnp.int32)]
