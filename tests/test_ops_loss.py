"""Chunked cross-entropy against NumPy: values, gradients, memory, and targets out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.loss import cross_entropy
from lcx.ops.loss.cross_entropy import LOGITS_AT_ONCE

B, T, D, V = 2, 7, 5, 11
CHUNKS = [None, 1, 3, 7, 100]


def draw(seed=0):
    rng = np.random.default_rng(seed)
    hidden, table = rng.normal(size=(B, T, D)), rng.normal(size=(V, D))
    return hidden, table, rng.integers(0, V, size=(B, T)), rng.normal(size=(B, T))


def twin(hidden, table, targets, weight, softcap=None):
    """nll, and the gradients of sum(weight * nll), token by token."""
    nll, to_hidden, to_table = np.zeros((B, T)), np.zeros_like(hidden), np.zeros_like(table)
    for b, t in np.ndindex(B, T):
        z = table @ hidden[b, t]
        slope = np.ones(V)
        if softcap:
            slope = 1 - np.tanh(z / softcap) ** 2
            z = softcap * np.tanh(z / softcap)
        p = np.exp(z) / np.exp(z).sum()
        nll[b, t] = -np.log(p[targets[b, t]])
        d = weight[b, t] * (p - np.eye(V)[targets[b, t]]) * slope
        to_hidden[b, t] = d @ table
        to_table += np.outer(d, hidden[b, t])
    return nll, to_hidden, to_table


def run(hidden, table, targets, weight, **options):
    @jax.jit
    def both(hidden, table):
        nll, pull = jax.vjp(lambda h, e: cross_entropy(h, e, targets, **options), hidden, table)
        return nll, *pull(jnp.asarray(weight, nll.dtype))

    return both(jnp.asarray(hidden), jnp.asarray(table))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_and_gradients_in_float64(chunk, softcap, x64):
    x = draw()
    for got, want in zip(run(*x, chunk=chunk, logit_softcap=softcap), twin(*x, softcap)):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_logits_are_cut_only_where_they_are_many(monkeypatch):
    """By default as many tokens at once as the bound allows, at least one."""
    hidden, table, targets, _ = draw()
    traced = lambda: jax.make_jaxpr(lambda *x: cross_entropy(*x))(hidden, table, targets)
    steps = lambda: str(traced()).count("length=7")  # of a scan
    assert steps() == 0
    backend = jax.default_backend()
    monkeypatch.setitem(LOGITS_AT_ONCE, backend, B * V * 2 - 1)  # one token of each row
    assert steps() == 1
    monkeypatch.setitem(LOGITS_AT_ONCE, backend, 1)
    assert steps() == 1


@pytest.mark.parametrize("chunk", [None, 3])
def test_values_and_gradients_in_float32(chunk):
    hidden, table, targets, weight = draw(1)
    table = table + 30  # large logits: the log-sum-exp is stabilised
    single = [np.asarray(a, np.float32) for a in (hidden, table)]
    double = [np.asarray(a, np.float64) for a in single]
    gots = run(*single, targets, weight, chunk=chunk)
    for got, want in zip(gots, twin(*double, targets, weight)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_table_gradient_is_summed_wide_under_bfloat16():
    """512 chunks that each add 2^-9: a bfloat16 sum would stop growing at 1."""
    hidden = jnp.ones((1, 1024, 1), jnp.bfloat16)
    table = jnp.zeros((2, 1), jnp.float32)
    targets = jnp.zeros((1, 1024), jnp.int32)
    gradient = jax.jit(jax.grad(lambda e: cross_entropy(hidden, e, targets, chunk=2).mean()))(table)
    np.testing.assert_allclose(gradient[:, 0], [-0.5, 0.5], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda e: cross_entropy(hidden, e, targets, chunk=1).sum()))(table)
    np.testing.assert_allclose(gradient[:, 0], [-512, 512], rtol=1e-6)


@pytest.mark.parametrize("bad", [-1, V, 2**30])
@pytest.mark.parametrize("chunk", [None, 3])
def test_a_target_out_of_range_is_nan_and_alone(bad, chunk):
    hidden, table, targets, weight = draw()
    targets[1, 4] = bad
    nll, to_hidden, _ = run(hidden, table, targets, weight, chunk=chunk)
    assert np.isnan(nll[1, 4]) and np.isnan(nll).sum() == 1
    assert np.isnan(to_hidden[1, 4]).all()
    # a caller that drops the token's nll gets finite gradients
    weight[1, 4] = 0
    _, to_hidden, to_table = run(hidden, table, targets, weight, chunk=chunk)
    assert np.isfinite(to_hidden).all() and np.isfinite(to_table).all()


def test_the_logits_of_a_long_row_are_never_held():
    length, vocab, width = 16384, 32768, 64
    hidden = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    table = jax.ShapeDtypeStruct((vocab, width), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, length), jnp.int32)
    gradient = jax.jit(jax.grad(lambda h, e, t: cross_entropy(h, e, t).mean(), (0, 1)))
    used = gradient.lower(hidden, table, targets).compile().memory_analysis().temp_size_in_bytes
    assert used < length * vocab * 4 / 6


def test_errors_say_what_to_do():
    hidden, table, targets, _ = draw()
    with pytest.raises(ValueError, match="table .* must be"):
        cross_entropy(hidden, table.T, targets)
    with pytest.raises(ValueError, match="one per token"):
        cross_entropy(hidden, table, targets[:, 1:])
    with pytest.raises(ValueError, match="pass token ids as integers"):
        cross_entropy(hidden, table, targets.astype(np.float32))
