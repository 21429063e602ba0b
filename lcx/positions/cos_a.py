"""The temperature of cosine attention: a fixed multiple of the logarithm of the number of keys."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import NonNegative
from lcx.lanes import Lanes, Sequence, Temperature
from lcx.positions import Position
from lcx.positions.log_n import keys_seen


class CosA(Position):
    """CosA (kexue.fm/archives/9859): logits scale ln(n) cos(q_i, k_j), scale 4, n keys seen.

    Stack it over a rotation, without which its author saw no gain, on attention with
    unit="both" (unit queries and keys, no 1/sqrt(d)).
    """

    scale: NonNegative = 4.0

    paper: ClassVar[str] = "https://kexue.fm/archives/9859"

    def numbers(self) -> dict[str, np.ndarray]:
        return {"scale": np.array(self.scale)}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        factor = self.number("scale") * jnp.log(keys_seen(seq, self.site.causal))
        return Lanes(temperature=Temperature(factor[..., None])), carry
