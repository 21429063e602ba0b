"""Attention over unit vectors: KeyNorm, and CosA with its temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError
from tests.positions.speaking import softmax, speak

T, WIDTH = 12, 16


def test_cos_a_golden(x64):
    factor = speak("cos_a", L.sequence(1, 512))[0].temperature.factor
    assert float(factor[0, 511, 0]) == pytest.approx(24.9533, abs=1e-4)


@pytest.mark.parametrize("unit", ["key", "both"])
def test_logits_are_products_with_unit_keys(unit, x64):
    """KeyNorm: q . k/|k|, no 1/sqrt(d); CosA: 4 ln(n) cos(q, k)."""
    position = "cos_a" if unit == "both" else "no_pe"
    mixer = mixers.make(dict(name="attention", num_heads=2, unit=unit), position=position,
                        width=WIDTH, train_length=T)
    x, seq = jax.random.normal(jax.random.key(0), (1, T, WIDTH), jnp.float64), L.sequence(1, T)
    found = jax.jit(mixer.init)(jax.random.key(1), x, seq)
    _, seen = mixer.apply(found, x, seq, mutable=["intermediates"])
    kernels = {name: np.asarray(found["params"][name]["kernel"].value, np.float64)
               for name in ("query", "key", "value")}
    q, k, v = (np.einsum("td,dhk->thk", x[0], kernels[name]) for name in ("query", "key", "value"))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    temperature = 1.0
    if unit == "both":
        q /= np.linalg.norm(q, axis=-1, keepdims=True)
        temperature = 4 * np.log(np.arange(T) + 1)[:, None]
    weights = softmax(np.einsum("thk,shk->hts", q, k) * temperature)
    np.testing.assert_allclose(seen["intermediates"]["outer"][0][0],
                               np.einsum("hts,shv->thv", weights, v), atol=1e-9)


def test_an_unknown_choice_is_refused():
    mixer = mixers.make(dict(name="attention", unit="keys"), position="no_pe", width=WIDTH,
                        train_length=T)
    with pytest.raises(ConfigError, match="choose 'key', 'both'"):
        jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, T, WIDTH)), L.sequence(1, T))
