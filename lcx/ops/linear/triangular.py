"""The inverse of a batch of small unit lower triangular matrices."""

import jax
import jax.numpy as jnp


def unit_lower_inverse(below: jax.Array) -> jax.Array:
    """(I + below)^{-1} for a strictly lower triangular below [..., C, C], at least float32."""
    size = below.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(size, dtype=below.dtype), below.shape)
    return jax.lax.linalg.triangular_solve(
        below + eye, eye, left_side=True, lower=True, unit_diagonal=True
    )
