"""LRPE: each channel's share of the product beats with the distance, at a learned frequency."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import AtLeastOne
from lcx.positions import Position
from lcx.positions.rope import ladder
from lcx.types import wide
from lcx.weights import free


class Lrpe(Position):
    """Linearised relative encoding of TransNormer (arXiv:2307.09270): sum_m q_m k_m cos(D f_m).

    D = id_i - id_j. Queries and keys become (x cos(id f), x sin(id f)), twice as wide, a kernel
    cos(D f_m) for each channel; cosFormer's weight with a frequency per channel. f starts on one
    ladder over *all* N key heads, head n from base^(-2n/N) to base^(-2(n+1)/N), and is learned in
    each layer. The paper puts an orthogonal map before this: the same for queries and keys, it is
    part of their projections. `lrpe_rope` is the variant that turns channel pairs. Checked against
    the first author's code (github.com/Doraemonzzz/xmixers, lrpe_type 3).
    """

    base: AtLeastOne = 10000.0

    structure: ClassVar[str] = "FIN"
    paper: ClassVar[str] = "arXiv:2307.09270"

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        shape = (self.site.num_kv_heads, self.site.rotary_dim)
        start = lambda key, shape: jnp.asarray(
            ladder(self.base**2, 2 * shape[0] * shape[1]).reshape(shape), jnp.float32)
        frequency = wide(self.param("frequency", free(
            start, ("kv_heads", "head_dim")), shape))
        params = L.split_frequency(frequency)  # [3,N,K]
        return L.Lanes(L.FeatureMap(params, features, features)), carry


def features(params, x, ids):
    """[B,T,H,K] -> [B,T,H,2K]: x cos(id f) and x sin(id f); query heads share in groups."""
    _, heads, dim = params.shape
    angle = L.phase(L.Rotation(params.reshape(3, -1)), ids).reshape(*ids.shape[:2], heads, dim)
    angle = jnp.repeat(angle, x.shape[2] // heads, axis=2)
    return jnp.concatenate([x * jnp.cos(angle), x * jnp.sin(angle)], -1)
