"""One temperature for a whole request, by how much longer it is than the texts trained on."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, Finite, NonNegative
from lcx.lanes import Lanes, Sequence, Temperature
from lcx.positions import Position
from lcx.types import wide


class LengthTemperature(Position):
    """Logits x (gain ln(L/L0) + 1)^power for a request told L > L0 tokens, and as they are below.

    All queries alike, where log_n grows from one to the next. YaRN's factor (arXiv:2309.00071) for
    schemes that have none of their own: gain 0.1, power 2 (once on cos and sin of each side);
    ChunkLlama's beside dca: gain 0.05, power 2; DroPE's (arXiv:2512.12167) after the rotation is
    dropped: gain 0.412 or 0.103 by model, power 1. original_length: L0, train_length if None.
    """

    gain: NonNegative = 0.1
    power: Finite = 2.0
    original_length: Count | None = None

    paper: ClassVar[str] = "arXiv:2309.00071"
    examples: ClassVar[tuple[dict, ...]] = (dict(original_length=8),)

    def numbers(self) -> dict[str, np.ndarray]:
        return {"original_length": np.array(float(self.original_length or self.site.train_length))}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        longer = jnp.maximum(wide(seq.length) / self.number("original_length"), 1.0)
        factor = (self.gain * jnp.log(longer) + 1.0) ** self.power
        factor = jnp.broadcast_to(factor, (*seq.order.shape, 1))
        return Lanes(temperature=Temperature(factor)), carry
