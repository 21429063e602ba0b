"""Adam with decoupled weight decay (arXiv:1711.05101)."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from lcx.domains import BelowOne, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
class Adamw:
    """AdamW; `weight_decay` is multiplied by the learning rate, as in the paper and in optax."""

    learning_rate: NonNegative = 1e-3
    b1: BelowOne = 0.9
    b2: BelowOne = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1

    def direction(self, decay: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, decay),
        )
