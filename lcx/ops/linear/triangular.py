"""The inverse of many small unit lower triangular matrices: matmuls on every backend.

Library solves take such batches one matrix and one row at a time (20 times slower on a CPU), and
the series 1 - L + L^2 - ... loses all digits where powers of L are large (repeated keys). Here
blocks of 8 go row by row, then neighbours merge: [[A, 0], [L, B]]^-1 = [[a, 0], [-b L a, b]].
"""

from functools import partial

import jax
import jax.numpy as jnp

BLOCK = 8
_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # no TF32: errors are amplified


@jax.custom_jvp
def unit_lower_inverse(below: jax.Array) -> jax.Array:
    """(I + below)^{-1} for a strictly lower triangular below [..., C, C], at least float32."""
    size = below.shape[-1]
    whole = BLOCK
    while whole < size:
        whole *= 2
    pad = [(0, 0)] * (below.ndim - 2) + [(0, whole - size)] * 2
    below = jnp.pad(below, pad)
    inverse = _rows(_blocks(below, BLOCK, 0))
    width = BLOCK
    while width < whole:
        pairs = inverse.reshape(*inverse.shape[:-3], -1, 2, width, width)
        upper, lower = pairs[..., 0, :, :], pairs[..., 1, :, :]
        corner = -_matmul(lower, _matmul(_blocks(below, 2 * width, width), upper))
        top = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, lower], axis=-1)], axis=-2)
        width *= 2
    return inverse[..., 0, :size, :size]


@unit_lower_inverse.defjvp
def _derivative(primals, tangents):
    inverse = unit_lower_inverse(*primals)
    strict = jnp.tril(tangents[0], -1)
    return inverse, -_matmul(inverse, _matmul(strict, inverse))


def _blocks(x, size, corner):
    """[..., C, C] -> the C/size diagonal blocks, or of each its lower left part of width corner."""
    rows = slice(corner, size)
    columns = slice(0, corner or size)
    starts = range(0, x.shape[-1], size)
    return jnp.stack([x[..., s:, s:][..., rows, columns] for s in starts], axis=-3)


def _rows(below):
    """The inverse by forward substitution, one row after another: [..., BLOCK, BLOCK]."""
    eye = jnp.eye(BLOCK, dtype=below.dtype)
    rows = jnp.broadcast_to(eye[:1], (*below.shape[:-2], 1, BLOCK))
    for i in range(1, BLOCK):
        row = eye[i] - jnp.sum(below[..., i, :i, None] * rows, axis=-2)
        rows = jnp.concatenate([rows, row[..., None, :]], axis=-2)
    return rows
