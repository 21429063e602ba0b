"""Sinusoidal absolute positions: sines and cosines of the id at a ladder of frequencies."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import AtLeastOne
from lcx.errors import ConfigError
from lcx.lanes import Rotation, Sequence, phase, split_frequency
from lcx.positions import Position
from lcx.positions.rope import ladder


class Sinusoidal(Position):
    """Sinusoidal embedding (arXiv:1706.03762): x_i + P[id_i], P_a . P_b depends on a - b only.

    base: of the ladder base^(-2m/D). interleaved: channels (2m,2m+1) are (sin,cos) as in the
    paper; else all sines, then all cosines (Transformer-XL): a permutation of channels apart.
    """

    base: AtLeastOne = 10000.0
    interleaved: bool = True

    paper: ClassVar[str] = "arXiv:1706.03762"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(interleaved=False))


class Embed(nn.Module):
    """Adds the sinusoids of each id to x [B,T,D]. Raises ConfigError if D is odd."""

    width: int
    train_length: int
    base: float
    interleaved: bool

    def __call__(self, x: jax.Array, seq: Sequence, tokens=None) -> jax.Array:
        if self.width % 2:
            raise ConfigError(f"sinusoidal positions need an even width, not {self.width}")
        angle = phase(Rotation(split_frequency(ladder(self.base, self.width))), seq.ids)
        waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1 if self.interleaved else -2)
        return x + waves.reshape(*angle.shape[:-1], self.width).astype(x.dtype)
