"""PoPE: magnitudes from the content, phases from the position alone."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx.domains import AtLeastOne
from lcx.positions import Position
from lcx.weights import free


class Pope(Position):
    """Polar position embedding (arXiv:2509.10534): sum_m |q|_m |k|_m cos((id_j - id_i) f_m + d_m).

    |x| = softplus(x) gives every channel a magnitude; channel m turns at f_m = base^(-m/d), so that
    what a token is and where it stands no longer share a phase. d_m, one per head and channel, is
    learned, clamped to [-2 pi, 0] and starts at 0. Features are twice as wide. Checked against a
    third-party port (x-transformers), as the specification records it.
    """

    base: AtLeastOne = 10000.0

    structure: ClassVar[str] = "FIN"
    paper: ClassVar[str] = "arXiv:2509.10534"
    represents: ClassVar[bool] = True

    def numbers(self) -> dict[str, np.ndarray]:
        dim = self.site.rotary_dim
        return {"frequency": L.split_frequency(self.base ** (-np.arange(dim) / dim))}

    @nn.compact
    def lanes(self, x, seq: L.Sequence, carry: Any) -> tuple[L.Lanes, Any]:
        shape = (self.site.num_kv_heads, self.site.rotary_dim)
        shift = self.param("shift", free(
            nn.initializers.zeros_init(), ("kv_heads", "head_dim")), shape)
        params = dict(rotation=L.Rotation(self.number("frequency")), shift=shift)
        return L.Lanes(L.FeatureMap(params, query_features, key_features)), carry


def query_features(params, x, ids):
    """[B,T,H,K] -> [B,T,H,2K]: softplus(x) at the angle id x f."""
    return _polar(x, L.phase(params["rotation"], ids)[..., None, :])


def key_features(params, x, ids):
    """The same at the angle id x f + shift, the shift clamped to [-2 pi, 0]."""
    shift = jnp.clip(params["shift"], -2 * np.pi, 0.0)
    return _polar(x, L.phase(params["rotation"], ids)[..., None, :] + shift)


def _polar(x, angle):
    size = jax.nn.softplus(x)
    return jnp.concatenate([size * jnp.cos(angle), size * jnp.sin(angle)], -1)
