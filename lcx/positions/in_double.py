"""Frequencies that depend on the length of a request, in double precision inside the graph."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lcx.lanes import split_frequency
from lcx.types import wide


def in_double(frequencies: Callable, *arrays: jax.Array) -> jax.Array:
    """`split_frequency` of frequencies(*arrays), computed in float64 whatever the precision.

    A frequency rounded to float32 is wrong by 0.06 rad at the millionth token; it can be made on
    the host unless the length that it depends on is traced. A handful of numbers per call.
    """
    with jax.enable_x64(True):
        split = split_frequency(frequencies(*(jnp.asarray(a, jnp.float64) for a in arrays)))
    return wide(split)


def joined(parts: jax.Array) -> jax.Array:
    """Radians per id [P] of the three parts [3,P] of `split_frequency`."""
    return 2 * jnp.pi * parts.sum(0)
