"""A constant learning rate after a linear warm-up."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lcx.domains import Fraction


@dataclasses.dataclass(frozen=True)
class Constant:
    """Factor 1, after rising linearly over the fraction `warmup` of the run."""

    warmup: Fraction = 0.0

    def __call__(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        return rise(step, steps, self.warmup)


def rise(step: jax.Array, steps: jax.Array, warmup: float) -> jax.Array:
    """A linear warm-up: the first update is not zero, and the full rate comes after `warmup`."""
    return jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup * steps, 1.0))
