"""The shape alphabet, and the one rule for precision.

Shapes are written with the same letters everywhere, in einsums in lower case:

    B batch   T queries   S keys   H heads   K head_dim (key_dim)   V value_dim or vocabulary
    D width   P rotary pairs (2P channels)   A axes of a position id   W window

Parameters are float32. Activations keep the dtype of the layer's input. Angles, cumulative gates,
biases, norms, softmax statistics, scan states and losses are *wide*: float32, or float64 where jax
runs with x64 (the precision in which the law tests compare with their oracle).
"""

from __future__ import annotations

import jax.numpy as jnp


def wide_dtype() -> jnp.dtype:
    """float32, or float64 under `jax.enable_x64`."""
    return jnp.result_type(float)


def wide(x):
    """`x` in the wide dtype."""
    return jnp.asarray(x, wide_dtype())
