"""HGRN, minGRU and minLSTM: whole layers against NumPy loops, golden numbers, equivalences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.mixers.min_gru import above_zero
from tests import mixer_cases as cases
from tests.mixer_cases import B, D, T, sigmoid, silu

HGRN = dict(name="hgrn", num_heads=2, inner_width=8, lower_bound=0.3)
GRU = dict(name="min_gru", num_heads=2, inner_width=12)
LSTM = dict(name="min_lstm", num_heads=2, inner_width=12)
FORMS = ("quadratic", "chunked", "step")


def recurrence(decay, value):
    """h_t = decay_t h_{t-1} + value_t within each document of the packed row."""
    out = np.zeros_like(value)
    for t in range(T):
        h = np.zeros_like(value[:, 0]) if cases.starts()[t] else out[:, t - 1]
        out[:, t] = decay[:, t] * h + value[:, t]
    return out


def hgrn_layer(p, x, fade=1.0):
    into = lambda name: np.einsum("btd,dhk->bthk", x, p[name]["kernel"])
    f = 0.3 + 0.7 * sigmoid(into("forget"))
    h = recurrence(f * fade, (1 - f) * silu(into("in"))).reshape(B, T, -1)
    h = h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    return np.einsum("bthk,hkd->btd", h.reshape(B, T, 2, 4) * silu(into("gate")),
                     p["out"]["kernel"])


def g(x):
    return np.where(x >= 0, x + 0.5, sigmoid(x))


def min_layer(p, x, positive=True, fade=1.0):
    into = lambda name: np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) + p[name]["bias"]
    new = g(into("in")) if positive else into("in")
    if "forget" in p:
        f, i = sigmoid(into("forget")), sigmoid(into("gate"))
        f, z = f / (f + i), i / (f + i)
    else:
        z = sigmoid(into("gate"))
        f = 1 - z
    return np.einsum("bthk,hkd->btd", recurrence(f * fade, z * new), p["out"]["kernel"])


@pytest.mark.parametrize("spec,layer", [
    (HGRN, hgrn_layer), (GRU, min_layer), (LSTM, min_layer),
    (dict(GRU, positive=False), lambda p, x, **k: min_layer(p, x, False, **k)),
    (dict(LSTM, positive=False), lambda p, x, **k: min_layer(p, x, False, **k)),
], ids=["hgrn", "min_gru", "min_lstm", "min_gru plain", "min_lstm plain"])
def test_the_layer_is_the_published_one(spec, layer, x64):
    mixer, seq = cases.build(spec), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    p = jax.tree.map(np.asarray, found["params"])
    np.testing.assert_allclose(cases.captured(mixer, found, x, seq)[0], layer(p, np.asarray(x)),
                               atol=1e-12)
    # a gate of the scheme multiplies the forget gate and leaves the write alone
    draw = -np.random.default_rng(3).random((T, 2))
    increment = np.where(cases.starts()[:, None], 0.0, draw)
    lanes = L.Lanes(bias=(L.Separable(jnp.asarray(increment)[None]),))
    np.testing.assert_allclose(
        cases.captured(mixer, found, x, seq, lanes)[0],
        layer(p, np.asarray(x), fade=np.exp(increment)[None, :, :, None]), atol=1e-12)


@pytest.mark.parametrize("spec", [HGRN, GRU, LSTM], ids=lambda s: s["name"])
def test_e14_a_separable_bias_is_a_shift_of_the_log_gate(spec, x64):
    """U.8 E14: the core under ALiBi is the same core whose log a is lower by the slope."""
    mixer, seq = cases.build(spec, "alibi"), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    _, inner, outer = cases.captured(mixer, found, x, seq)
    slope = np.array([2.0**-4, 2.0**-8])[:, None]  # of two heads
    cases.close(outer, recurrence(np.exp(inner["log_decay"] - slope), inner["value"]), 1e-12)


@pytest.mark.parametrize("position,forms", [
    ("fox", FORMS), ("rope", ("chunked", "step"))], ids=str)
@pytest.mark.parametrize("spec", [HGRN, LSTM], ids=lambda s: s["name"])
def test_every_way_of_running_agrees(spec, position, forms, x64):
    cases.agree(cases.ways(dict(spec, chunk=4), position, forms))


def test_golden_activation_and_starts():
    np.testing.assert_allclose(above_zero(jnp.array([-1.0, 0.0, 2.0])), [0.26894, 0.5, 2.5],
                               atol=1e-5)
    init = lambda spec: nn.unbox(jax.jit(cases.build(spec).init)(
        jax.random.key(0), cases.inputs(), cases.packed()))["params"]
    params = init(dict(LSTM, forget_bias=1.5))
    np.testing.assert_array_equal(params["forget"]["bias"], np.full((2, 6), 1.5))
    np.testing.assert_array_equal(params["gate"]["bias"], np.zeros((2, 6)))
    params = init(dict(HGRN, inner_width=128))
    np.testing.assert_allclose(params["forget"]["kernel"].std(), D**-0.5, rtol=0.1)
    np.testing.assert_allclose(params["out"]["kernel"].std(), 128**-0.5, rtol=0.1)


def test_a_lower_bound_bounds_what_is_forgotten():
    mixer, seq = cases.build(dict(HGRN, lower_bound=0.9)), cases.packed()
    found = cases.variables(mixer, seq)
    found = jax.tree.map(lambda a: 30 * a, found)  # gates wide open or shut
    _, inner, _ = cases.captured(mixer, found, cases.inputs().astype(jnp.float32), seq)
    assert 0.9 - 1e-6 < np.exp(inner["log_decay"]).min() < 0.91
    with pytest.raises(ConfigError, match="below 1, got 1.0"):
        cases.build(dict(HGRN, lower_bound=1.0)).site()
    with pytest.raises(ConfigError, match="inner_width"):
        cases.build(dict(GRU, inner_width=7)).site()
