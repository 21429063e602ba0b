"""GRAPE-AP: a penalty summed along the path from key to query, which the query decides."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.domains import whole
from lcx.errors import ConfigError
from lcx.layers import Dense
from lcx.positions import Position
from lcx.positions.alibi import slopes
from lcx.types import precise, wide


class GrapeAp(Position):
    """Additive GRAPE along paths (arXiv:2512.07805): B_ij = sum over j < l <= i of
    m_h log sigmoid(p_i . R_l^T p^_l / d).

    p is read from x, d = `dim` channels per head; p^ = p / rms(p); m are ALiBi's slopes. R turns
    all pairs by one radian per id, and only on the key's side, as in the authors' code, so this is
    not relative. Checked against that code.
    """

    dim: Annotated[int, whole(2)] = 8

    structure: ClassVar[str] = "PAIR"
    paper: ClassVar[str] = "arXiv:2512.07805"
    relative: ClassVar[bool] = False
    content: ClassVar[bool] = True
    represents: ClassVar[bool] = True

    def numbers(self) -> dict[str, np.ndarray]:
        return {"slope": slopes(self.site.num_heads)}

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        if self.dim < 2 or self.dim % 2:
            raise ConfigError(f"grape_ap turns pairs of channels: dim={self.dim} must be even")
        p = wide(Dense((self.site.num_heads, self.dim), ("heads", "head_dim"), exact=True,
                       name="path")(x))
        return L.Lanes(bias=(L.Pairwise(self.number("slope"), bias, True, extras=p),)), carry


def bias(slope, tile: L.Tile):
    """[B,H,T,S]; tile holds *all* keys of its rows."""
    asked, told = tile.query_extras, tile.key_extras
    told = told * jax.lax.rsqrt(jnp.mean(told**2, -1, keepdims=True) + jnp.finfo(jnp.float32).eps)
    angle = tile.key_ids[..., :1, None]  # base 1: one radian per id in every pair
    first, second = jnp.split(told, 2, -1)
    turned = jnp.concatenate([first * jnp.cos(angle) + second * jnp.sin(angle),
                              second * jnp.cos(angle) - first * jnp.sin(angle)], -1)
    step = jax.nn.log_sigmoid(precise("bthk,bshk->bhts", asked, turned) / asked.shape[-1])
    step = jnp.where(tile.mask[:, None], step * slope[:, None, None], 0.0)
    return jnp.cumsum(step[..., ::-1], -1)[..., ::-1] - step  # of the tokens after key j
