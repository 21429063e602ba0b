"""Transformer-XL: queries meet a sinusoid of the distance, and two learned global queries."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.domains import AtLeastOne
from lcx.positions import Position
from lcx.positions.rope import ladder
from lcx.types import precise, wide
from lcx.weights import free, matrix


class TransformerXl(Position):
    """Relative encoding of Transformer-XL (arXiv:1901.02860):
    z_ij = [(q_i + u) . k_j + (q_i + v) . W r_{i-j}] / sqrt(d), values without position.

    r_D = [sin(D f) | cos(D f)] of `width` channels; W per head; u, v [H,d] start normal with
    deviation 0.02, W with variance 1/fan_in. DeepMind's re-implementation reads its table in
    another order, which depends on the length; this is the paper's. Nothing of size [T,S,d] is
    formed: the sinusoid of a difference is a rotation of W^T (q + v).
    """

    base: AtLeastOne = 10000.0

    structure: ClassVar[str] = "PAIR"
    paper: ClassVar[str] = "arXiv:1901.02860"

    def numbers(self) -> dict[str, np.ndarray]:
        return {"frequency": L.split_frequency(ladder(self.base, self.site.width // 2 * 2))}

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        return L.Lanes(bias=(L.Pairwise(self.terms(), bias),)), carry

    def terms(self) -> dict[str, Any]:
        """What `bias` reads; called from the one compact method."""
        heads, dim, width = self.site.num_heads, self.site.key_dim, self.site.width // 2 * 2
        small = free(nn.initializers.normal(0.02), ("heads", "head_dim"))
        project = matrix(nn.initializers.normal(width ** -0.5),
                                               ("width", "heads", "head_dim"))
        return dict(rotation=L.Rotation(self.number("frequency")),
                    content=wide(self.param("content", small, (heads, dim))),
                    place=wide(self.param("place", small, (heads, dim))),
                    project=wide(self.param("project", project, (width, heads, dim))))


def bias(params, tile: L.Tile):
    """[u . k_j + (q_i + v) . W r_{i-j}] x scale, [B,H,T,S]."""
    content = precise("hk,bshk->bhs", params["content"], tile.key)[:, :, None]
    asked = precise("bthk,whk->bthw", tile.query + params["place"], params["project"])
    sine, cosine = jnp.split(asked, 2, -1)
    angle = lambda ids: L.phase(params["rotation"], ids)[..., None, :]
    at, to = angle(tile.query_ids), angle(tile.key_ids)
    # a sin(x - y) + b cos(x - y), expanded in sin y and cos y
    over_cos = sine * jnp.sin(at) + cosine * jnp.cos(at)
    over_sin = cosine * jnp.sin(at) - sine * jnp.cos(at)
    keys = jnp.concatenate([jnp.cos(to), jnp.sin(to)], -1)[:, :, 0]
    queries = jnp.concatenate([over_cos, over_sin], -1)
    keys = jnp.broadcast_to(keys, (queries.shape[0], *keys.shape[1:]))
    return (content + precise("bthw,bsw->bhts", queries, keys)) * tile.scale
