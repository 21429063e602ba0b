"""Temperatures that depend on the number of keys: published numbers, documents, both directions."""

import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError
from tests.test_positions import HEADS, logits, speak, vectors

SEGMENT = np.array([[1, 1, 1, 2, 3, 3, 3, 3, 4]])
BEFORE, WHOLE = [1, 2, 3, 1, 1, 2, 3, 4, 1], [3, 3, 3, 1, 4, 4, 4, 4, 1]


def factor(spec, seq, **where):
    return np.asarray(speak(spec, seq, **where)[0].temperature.factor)


def test_llama4_goldens():
    found = factor("llama4_temperature", L.sequence(1, 131072))[0, :, 0]
    assert (found[:8191] == 1).all()
    for position, wanted in ((8191, 1.0693147), (16383, 1.1098612), (131071, 1.2833213)):
        assert found[position] == pytest.approx(wanted, abs=1e-6)
        assert found[position - 1] < found[position]  # each step is exactly there
    seq = L.sequence(1, 9, segment=SEGMENT, ids=np.arange(9.0)[None, :, None] + 1e5)
    spec = dict(name="llama4_temperature", floor=2, scale=1.0)
    steps = np.array(BEFORE) // 2  # counts tokens of the document, whatever their ids
    np.testing.assert_allclose(factor(spec, seq)[0, :, 0], 1 + np.log(steps + 1), rtol=1e-6)
    with pytest.raises(ConfigError, match="floor' must be int, 1 or more"):
        factor(dict(name="llama4_temperature", floor=0), seq)


@pytest.mark.parametrize("causal, keys", [(True, BEFORE), (False, WHOLE)])
def test_log_n_and_ss_max_count_the_keys_of_the_document(causal, keys):
    seq = L.sequence(1, 9, segment=SEGMENT)
    log = np.log(np.array(keys, float))
    trained = dict(name="log_n", trained=True, original_length=8)
    np.testing.assert_allclose(factor(trained, seq, causal=causal)[0, :, 0], log / np.log(8),
                               rtol=1e-6)
    np.testing.assert_allclose(factor("ss_max", seq, causal=causal)[0], 0.168 * np.stack(
        [log] * HEADS, 1), rtol=1e-5)
    whole = factor(trained, L.sequence(1, 9), causal=causal)[0, :, 0]
    count = np.arange(1, 10) if causal else np.full(9, 9)
    np.testing.assert_allclose(whole, np.log(count) / np.log(8), rtol=1e-6)


def test_ss_max_is_a_power_of_n(x64):
    q, k, _ = vectors(12)
    bare, _ = logits("no_pe", q, k, L.sequence(1, 12))
    s, b = np.linspace(0.1, 0.6, HEADS), np.linspace(-0.2, 0.5, HEADS)
    change = lambda found: {"params": {"scale": jnp.asarray(s), "bias": jnp.asarray(b)}}
    got, found = logits(dict(name="ss_max", bias=True), q, k, L.sequence(1, 12), change=change)
    for h in range(HEADS):
        for n in (1, 2, 7, 12):
            z = bare[h, n - 1, :n]
            power = n ** (s[h] * z) * np.exp(b[h] * z)
            weight = np.exp(got[h, n - 1, :n])
            np.testing.assert_allclose(weight / weight.sum(), power / power.sum(), rtol=1e-9)
    _, found = logits("ss_max", q, k, L.sequence(1, 12))
    assert set(found["params"]) == {"scale"} and found["params"]["scale"].shape == (HEADS,)


def test_ss_max_of_an_even_slope_is_log_n(x64):
    q, k, _ = vectors(12)
    spec = dict(name="ss_max", start=1 / np.log(16))
    wanted, _ = logits(dict(name="log_n", trained=True), q, k, L.sequence(1, 12))
    got, _ = logits(spec, q, k, L.sequence(1, 12))
    seen = np.isfinite(wanted)
    np.testing.assert_allclose(got[seen], wanted[seen], rtol=1e-6)


def test_length_temperature_follows_the_length_told(x64):
    told = lambda length, **options: factor(
        dict(name="length_temperature", **options), L.sequence(1, 3, told_length=length),
        train_length=4096)
    for scale, gain in ((4, 1.29648), (8, 1.45913), (16, 1.63139), (32, 1.81326)):  # YaRN's g^2
        np.testing.assert_allclose(told(4096 * scale), np.full((1, 3, 1), gain), rtol=1e-5)
    assert (told(4096) == 1).all() and (told(7) == 1).all()
    np.testing.assert_allclose(told(8192, gain=0.412, power=1.0), 1 + 0.412 * np.log(2))
    q, k, _ = vectors(20)
    stacked, _ = logits([dict(name="dca", chunk=9, local=2), dict(
        name="length_temperature", gain=0.05)], q, k, L.sequence(1, 20), train_length=8)
    own, _ = logits(dict(name="dca", chunk=9, local=2, gain=0.05), q, k, L.sequence(1, 20),
                    train_length=8)
    seen = np.isfinite(own)
    np.testing.assert_allclose(stacked[seen], own[seen], rtol=1e-9)
