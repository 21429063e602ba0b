"""Warm-up, stable, decay (arXiv:2404.06395); the decay is 1 - sqrt (arXiv:2405.18392)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lcx.domains import Fraction
from lcx.train.schedules.constant import rise


@dataclasses.dataclass(frozen=True)
class Wsd:
    """Rises over `warmup`, stays, and falls to `final` over the last fraction `decay`."""

    warmup: Fraction = 0.05
    decay: Fraction = 0.2
    final: Fraction = 0.0

    def __call__(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        length = jnp.maximum(self.decay * steps, 1.0)
        done = jnp.clip((step + 1 - (steps - length)) / length, 0.0, 1.0)
        fall = 1 - (1 - self.final) * jnp.sqrt(done)
        return rise(step, steps, self.warmup) * fall
