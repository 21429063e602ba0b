"""Linear warm-up, then half a cosine down (arXiv:1608.03983, without restarts)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lcx.domains import Fraction
from lcx.train.schedules.constant import rise


@dataclasses.dataclass(frozen=True)
class WarmupCosine:
    """Rises over the fraction `warmup` of the run, then falls to `final` times the peak."""

    warmup: Fraction = 0.05
    final: Fraction = 0.1

    def __call__(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        start = self.warmup * steps
        done = jnp.clip((step + 1 - start) / jnp.maximum(steps - start, 1.0), 0.0, 1.0)
        fall = self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return rise(step, steps, self.warmup) * fall
