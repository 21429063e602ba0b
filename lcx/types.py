"""The shape alphabet, and the one rule for precision.

Shapes are written with the same letters everywhere, in einsums in lower case:

    B batch   T queries   S keys   H heads   K head_dim (key_dim)   V value_dim or vocabulary
    D width   P rotary pairs (2P channels)   A axes of a position id   W window

Parameters are float32. Activations keep the dtype of the layer's input. Angles, cumulative gates,
biases, norms, softmax statistics, scan states and losses are *wide*: float32, or float64 where jax
runs with x64 (the precision in which the law tests compare with their oracle). On an NVIDIA card a
float32 matrix product is TF32 (10 bits, 3e-4) unless it asks for more: products that make angles,
gates, biases, steps of a running sum and positions ask (`precise`, `Dense(exact=True)`).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


def wide_dtype() -> jnp.dtype:
    """float32, or float64 under `jax.enable_x64`."""
    return jnp.result_type(float)


def wide(x):
    """`x` in the wide dtype."""
    return jnp.asarray(x, wide_dtype())


# `jnp.einsum` in the full precision of its operands, never TF32.
precise = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
