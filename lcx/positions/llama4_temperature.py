"""Llama 4's temperature: logits of late queries grow with the logarithm of their position."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lcx.domains import Count, NonNegative
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Temperature
from lcx.positions import Position
from lcx.types import wide


class Llama4Temperature(Position):
    """Temperature of Llama 4's layers without RoPE: 1 + scale ln(floor((n + 1)/floor) + 1).

    n is the number of tokens before the query, whatever their ids. floor: 8192, so that texts
    shorter than that stay as they are. It stands on every fourth layer, which has no rotation.
    Checked against Llama-4 of transformers.
    """

    scale: NonNegative = 0.1
    floor: Count = 8192

    paper: ClassVar[str] = "https://github.com/meta-llama/llama-models"
    examples: ClassVar[tuple[dict, ...]] = (dict(floor=4),)

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if self.floor < 1:
            raise ConfigError(f"llama4_temperature counts floors of tokens, not of {self.floor}")
        steps = wide((seq.index + 1) // self.floor)  # integers: exact at every boundary
        factor = 1 + self.scale * jnp.log1p(steps)
        return Lanes(temperature=Temperature(factor[..., None])), carry
