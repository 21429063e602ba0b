"""Adam with decoupled weight decay (arXiv:1711.05101)."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax


@dataclasses.dataclass(frozen=True)
class Adamw:
    """AdamW; `weight_decay` is multiplied by the learning rate, as in the paper and in optax."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def direction(self, decay: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay, decay),
        )
