"""PaTH's scores: blocked and recurrent forms against explicit products of Householder matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.householder import householder_scores

B, H, K = 2, 2, 4
FORMS = [dict(form="recurrent"), dict(block=1), dict(block=5), dict(block=16), dict()]


def draw(queries, slots, seed=0):
    rng = np.random.default_rng(seed)
    erase = rng.normal(size=(B, slots, H, K))
    return dict(
        query=rng.normal(size=(B, queries, H, K)),
        key=rng.normal(size=(B, slots, H, K)),
        erase=erase / np.linalg.norm(erase, axis=-1, keepdims=True),
        beta=rng.uniform(0, 2, size=(B, slots, H)),
    )


def twin(query, key, erase, beta, offset):
    """z_ij for j <= i by matrices, NaN elsewhere."""
    z = np.full((B, H, query.shape[1], key.shape[1]), np.nan)
    for b, h, t in np.ndindex(B, H, query.shape[1]):
        product = np.eye(K)
        for j in range(offset + t, -1, -1):
            z[b, h, t, j] = key[b, j, h] @ product @ query[b, t, h]
            w = erase[b, j, h]
            product = (np.eye(K) - beta[b, j, h] * np.outer(w, w)) @ product
    return z


def agree(got, want, tolerance):
    got = np.asarray(got)
    assert got.shape == want.shape and np.isfinite(got).all()
    got = np.where(np.isnan(want), 0, got)
    np.testing.assert_allclose(got, np.nan_to_num(want), atol=tolerance)


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("queries, slots, offset", [(13, 13, 0), (1, 13, 12), (4, 13, 6)])
def test_agrees_with_products_of_matrices(options, queries, slots, offset, x64):
    x = draw(queries, slots)
    x["erase"][:, offset + queries :] *= 1e3  # garbage after the queries stays out of them
    score = jax.jit(lambda x, offset: householder_scores(**x, offset=offset, **options))
    got = score({n: jnp.asarray(a) for n, a in x.items()}, offset)  # traced offset
    assert got.dtype == jnp.float64
    agree(got, twin(**x, offset=offset), 1e-10)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_float32_with_repeated_reflections(options):
    x = draw(20, 20)
    x["erase"][:, :] = x["erase"][:, :1]
    x["beta"][:] = 2.0
    single = {n: jnp.asarray(a, jnp.float32) for n, a in x.items()}
    got = jax.jit(lambda x: householder_scores(**x, **options))(single)
    assert got.dtype == jnp.float32
    agree(got, twin(**x, offset=0), 1e-4)


@pytest.mark.parametrize("options", FORMS[1:], ids=str)
def test_gradients_equal_those_of_the_recurrent_form(options, x64):
    x = {n: jnp.asarray(a) for n, a in draw(6, 11).items()}
    weight = np.random.default_rng(1).normal(size=(B, H, 6, 11))
    weight = weight * (np.arange(11) <= 3 + np.arange(6)[:, None])

    def gradient(**options):
        return jax.jit(
            jax.grad(lambda x: jnp.sum(weight * householder_scores(**x, offset=3, **options)))
        )(x)

    got, want = gradient(**options), gradient(form="recurrent")
    for name in x:
        assert np.abs(want[name]).max() > 1e-3
        np.testing.assert_allclose(got[name], want[name], atol=1e-10)


def test_the_recurrent_gradient_is_a_finite_difference(x64):
    x, rng = draw(5, 5), np.random.default_rng(2)
    weight = np.tri(5) * rng.normal(size=(B, H, 5, 5))
    functional = jax.jit(lambda x: jnp.sum(weight * householder_scores(**x, form="recurrent")))
    gradient = jax.jit(jax.grad(functional))(x)
    for name in x:
        d = rng.normal(size=x[name].shape)
        up, down = (functional(x | {name: x[name] + s * 1e-5 * d}) for s in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-5, jnp.sum(gradient[name] * d), rtol=1e-6)


def test_no_erase_is_the_plain_product_and_bfloat16_accumulates_wide():
    x = {n: jnp.asarray(a, jnp.bfloat16) for n, a in draw(8, 8).items()}
    score = jax.jit(lambda x: householder_scores(**x))
    got = score(x | dict(beta=0 * x["beta"]))
    assert got.dtype == jnp.float32
    want = np.einsum("bthk,bshk->bhts", *(np.asarray(x[n], np.float64) for n in ("query", "key")))
    np.testing.assert_allclose(got, want, atol=1e-5)
    want = twin(**{n: np.asarray(a, np.float64) for n, a in x.items()}, offset=0)
    agree(score(x), want, 0.1)


def test_errors_say_what_to_do():
    x = {n: jnp.asarray(a) for n, a in draw(3, 5).items()}
    with pytest.raises(ValueError, match="choose 'blocked' or 'recurrent'"):
        householder_scores(**x, form="chunked")
    with pytest.raises(ValueError, match="must fit key"):
        householder_scores(**x | dict(beta=x["beta"][:, 1:]))
    with pytest.raises(ValueError, match="must share B, H and K"):
        householder_scores(**x | dict(query=x["query"][:, :, :1]))
