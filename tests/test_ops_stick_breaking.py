"""Stick-breaking attention: shares of a stick, the first token, logits far from zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.ops import pairs
from lcx.ops.attention import stick_breaking

T = 6


def shares(query, key, remainder=False, chunk=None):
    """Weights [T,T] of one head, read off values that are unit vectors."""
    seq = L.sequence(1, T)
    value = jnp.eye(T, dtype=query.dtype)[None, :, None]
    run = jax.jit(lambda query, key: stick_breaking.attend(
        pairs.Queries(query, seq), pairs.Keys(key, value, seq), value, L.Lanes(),
        rotary_dim=query.shape[-1], scale=1.0, remainder=remainder, chunk=chunk))
    return np.asarray(run(query, key))[0, :, 0]


def test_even_logits_halve_the_stick():
    """Golden: z = 0 gives the last of six tokens 2^-5 ... 2^-1, and leaves 0.03125."""
    zero = jnp.zeros((1, T, 1, 4))
    np.testing.assert_allclose(shares(zero, zero)[5], [2.0**-n for n in (5, 4, 3, 2, 1)] + [0])
    np.testing.assert_allclose(shares(zero, zero, remainder=True)[5, 5], 0.03125)


@pytest.mark.parametrize("chunk", [None, 4])
def test_with_the_remainder_rows_sum_to_one_and_without_the_first_reads_nothing(chunk):
    query, key = jax.random.normal(jax.random.key(0), (2, 1, T, 1, 4)) * 3
    np.testing.assert_allclose(shares(query, key, True, chunk).sum(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(shares(query, key, False, chunk)[0], 0.0)


@pytest.mark.parametrize("sign, nearest", [(1.0, 1.0), (-1.0, 0.0)])
def test_large_logits_neither_overflow_nor_lose_the_gradient(sign, nearest):
    """z = 1000 takes the whole stick at once, z = -1000 nothing; both have finite gradients."""
    query, key, seq = jnp.full((1, T, 1, 4), 250.0), sign * jnp.ones((1, T, 1, 4)), L.sequence(1, T)
    np.testing.assert_allclose(np.diag(shares(query, key), -1), nearest)
    grad = jax.grad(lambda q: jnp.sum(stick_breaking.attend(
        pairs.Queries(q, seq), pairs.Keys(key, key, seq), key, L.Lanes(), rotary_dim=4, scale=1.0,
        remainder=True)))(query)
    assert np.isfinite(grad).all()
