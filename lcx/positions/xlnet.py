"""XLNet: Transformer-XL's encoding, and whether two tokens share a segment."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lcx import lanes as L
from lcx.positions import transformer_xl
from lcx.types import precise, wide
from lcx.weights import free


class Xlnet(transformer_xl.TransformerXl):
    """Relative encoding of XLNet (arXiv:1906.08237): Transformer-XL's terms plus (q_i + s) . g_e.

    e = 0 within a segment, 1 across. Segments (sentence A, sentence B) are the second axis of the
    ids; ids of one axis are all one segment. All terms share the one 1/sqrt(d).
    """

    paper: ClassVar[str] = "arXiv:1906.08237"

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        shape, axes = (self.site.num_heads, self.site.key_dim), ("heads", "head_dim")
        normal = nn.initializers.normal(0.02)
        own = free(normal, axes)
        kinds = free(normal, ("positions", *axes))
        params = dict(self.terms(), segment=wide(self.param("segment", own, shape)),
                      kinds=wide(self.param("kinds", kinds, (2, *shape))))
        return L.Lanes(bias=(L.Pairwise(params, bias, axes=2),)), carry


def bias(params, tile: L.Tile):
    """Transformer-XL's two terms and the segment's, x scale: [B,H,T,S]."""
    kind = precise("bthk,ehk->ebht", tile.query + params["segment"], params["kinds"])
    across = jnp.zeros((), bool) if tile.query_ids.shape[-1] == 1 else (
        tile.query_ids[..., :, None, 1] != tile.key_ids[..., None, :, 1])[:, None]
    term = jnp.where(across, kind[1][..., None], kind[0][..., None])
    return transformer_xl.bias(params, tile) + term * tile.scale
