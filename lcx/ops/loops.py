"""Loops that read what was made outside of them: its gradient is summed over the steps, wide."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lcx.types import wide


def summed_wide(body: Callable, *example) -> Callable:
    """The body of a loop, such that what it closes over has its gradient summed in float32.

    `lax.scan` and `lax.map` sum the gradient of an array that every step reads in the array's own
    dtype: in bfloat16 it is 0.7% off after 64 steps and 2% after 512. The body returned closes
    over wide copies, narrowed anew in each step; values are the same bits. For parameters, cast
    them inside the body yourself. example: arguments of one step, arrays or their shapes; the body
    may use no flax module.
    """
    converted, held = jax.closure_convert(body, *example)
    narrow = [jnp.issubdtype(a.dtype, jnp.floating) and jnp.finfo(a.dtype).bits < 32 for a in held]
    copies = [wide(a) if low else a for a, low in zip(held, narrow)]

    def step(*arguments):
        return converted(*arguments, *(copy.astype(a.dtype) for copy, a in zip(copies, held)))

    return step
