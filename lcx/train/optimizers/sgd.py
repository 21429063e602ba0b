"""Stochastic gradient descent, with momentum on request."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from lcx.domains import BelowOne, NonNegative


@dataclasses.dataclass(frozen=True)
class Sgd:
    """SGD; its update is linear in the gradient, so sharding changes it by rounding only."""

    learning_rate: NonNegative = 0.1
    momentum: BelowOne = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0

    def direction(self, decay: Any) -> optax.GradientTransformation:
        return optax.chain(
            optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity(),
            optax.add_decayed_weights(self.weight_decay, decay),
        )
