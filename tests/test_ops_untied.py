"""Pair weights under rotation and gates that do not commute: blocks against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.untied import untied_scores
from tests.test_ops_linear import turned

B, S, H, K = 2, 37, 2, 5


def draw(seed=0):
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(2, B, S, H, K))
    return query, key, -rng.exponential(0.3, size=(B, S, H, K)), rng.normal(size=(B, S, H, 2))


def loop(query, key, log_decay, angle, interleaved):
    out = np.zeros((B, H, S, S))
    for b in range(B):
        for h in range(H):
            for j in range(S):
                moved = key[b, j, h]
                for i in range(j, S):
                    if i > j:
                        moved = turned(angle[b, i, h], K, interleaved) @ moved
                        moved = np.exp(log_decay[b, i, h]) * moved
                    out[b, h, i, j] = query[b, i, h] @ moved
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("form", ["blocked", "recurrent"])
@pytest.mark.parametrize("first,last", [(0, S), (5, 29), (36, 37)])
def test_agrees_with_the_loop(form, interleaved, first, last, x64):
    query, key, decay, angle = draw()
    want = loop(query, key, decay, angle, interleaved)[:, :, first:last]
    run = jax.jit(lambda q, *keys, offset: untied_scores(
        q, *keys, offset=offset, interleaved=interleaved, form=form))
    got = run(query[:, first:last], key, decay, angle, offset=first)  # a traced offset
    causal = np.tri(S, dtype=bool)[first:last]
    np.testing.assert_allclose(np.where(causal, got, 0), want, atol=1e-12)
    if first == 0:
        got = untied_scores(query, key, decay, angle, interleaved=interleaved, form=form)
        np.testing.assert_allclose(np.where(causal, got, 0), want, atol=1e-12)


def test_gradients_of_the_forms_agree_and_closed_gates_are_finite(x64):
    query, key, decay, angle = draw(1)
    decay[:, ::7] = -np.inf
    weight = np.where(np.tri(S, dtype=bool), np.random.default_rng(2).normal(size=(S, S)), 0)

    def total(operands, form):
        return jnp.sum(weight * untied_scores(*operands, form=form))

    got, want = (jax.jit(jax.grad(total), static_argnums=1)((query, key, decay, angle), form)
                 for form in ("blocked", "recurrent"))
    for a, b in zip(got, want):
        assert np.isfinite(a).all() and np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_gradients_at_a_size_that_runs_on_all_cores():
    """Backends have crashed on gradients of large arrays with eight axes."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    operands = draw(1, 256, 4, 16), draw(1, 256, 4, 16), -abs(draw(1, 256, 4, 16)), draw(
        1, 256, 4, 8)
    for options in ({}, dict(offset=jnp.int32(0))):
        total = lambda x, options=options: jnp.sum(jnp.sin(untied_scores(*x, **options)))
        for slope in jax.jit(jax.grad(total))(operands):
            assert np.isfinite(slope).all()
