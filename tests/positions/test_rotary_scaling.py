"""Edits of RoPE's spectrum: published numbers, twins of the formulas, and what equals what."""

import math

import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError
from tests.test_positions import make, speak, theta


def ladder(name, dim=128, train_length=4096, **options):
    return make(dict(name=name, **options), dim=dim, train_length=train_length).ladder()


def told(name, length, dim=128, train_length=4096, **options):
    """Radians per id [P] of a request that was told its length, as the program computes them."""
    lanes, _ = speak(dict(name=name, **options), L.sequence(1, 1, told_length=length), dim=dim,
                     train_length=train_length)
    return 2 * np.pi * np.asarray(lanes.transport.frequency, np.float64).sum(0)


PAIRS = np.arange(64)
EXACT = 2e-13  # radians per id: 2e-7 at the millionth token


@pytest.mark.parametrize("name, options", [
    ("pi", dict(factor=1.0)), ("ntk", dict(factor=1.0)), ("yarn", dict(factor=1.0)),
    ("p_rope", dict(proportion=1.0)), ("ntk_mixed", dict(factor=1.0)),
    ("ntk_by_parts", dict(factor=1.0)), ("llama3", dict(factor=1.0)),
    ("hope", dict(original_length=10**6)), ("long_rope", dict(long=1.0)),
    ("long_rope", dict(long=1.0, dynamic=True)), ("dynamic_ntk", dict(original_length=10**6))],
    ids=str)
def test_settings_that_equal_rope(name, options):
    np.testing.assert_allclose(told(name, 9999, base=5e3, **options), theta(128, 5e3), rtol=0,
                               atol=EXACT)


def test_p_rope_keeps_the_fastest_pairs():
    kept = lambda p, dim: np.count_nonzero(ladder("p_rope", dim, proportion=p))
    assert [kept(p, 64) for p in (0.0, 0.25, 0.3, 0.75, 1.0)] == [0, 8, 9, 24, 32]  # not 10
    found = ladder("p_rope", 64, proportion=0.75, base=1e6, factor=8.0)
    np.testing.assert_allclose(found[:24], theta(64, 1e6)[:24] / 8, rtol=1e-14)
    assert not found[24:].any()
    # partial RoPE is another scheme: it spreads all timescales over the same share of channels
    assert ladder("rope", 64, fraction=0.75, base=1e6)[-1] < found[23] * 8


@pytest.mark.parametrize("dim, length, kept", [
    (64, 512, 16), (64, 1024, 18), (64, 2048, 21), (64, 4096, 23), (64, 8192, 25),
    (128, 512, 31), (128, 1024, 36), (128, 2048, 41), (128, 4096, 46), (128, 8192, 50)])
def test_hope_keeps_pairs_with_a_whole_period(dim, length, kept):
    found = ladder("hope", dim, length)
    np.testing.assert_allclose(found, np.where(np.arange(dim // 2) < kept, theta(dim), 0),
                               rtol=1e-14)
    np.testing.assert_array_equal(ladder("hope", dim, 7, original_length=length), found)


def test_ntk_mixed_goldens_and_limits():
    found = ladder("ntk_mixed", factor=8.0) / theta(128)
    assert found[[0, 31, 63]] == pytest.approx([0.856796, 0.259668, 0.125], abs=1e-6)
    np.testing.assert_allclose(ladder("ntk_mixed", factor=8.0, exponent=0.0),
                               ladder("pi", factor=8.0), rtol=1e-14)
    fixed = theta(128) * 8.0 ** (-2 * (PAIRS + 1) / 128)  # lambda (beta lambda)^(m-1)
    np.testing.assert_allclose(ladder("ntk_mixed", factor=8.0, exponent=1.0), fixed, rtol=1e-13)
    a = math.log(12) / 64 ** 0.75  # the code of the post
    twin = [1e4 ** (-2 * m / 128) * math.exp(-a * (m + 1) ** 0.75) for m in range(64)]
    np.testing.assert_allclose(ladder("ntk_mixed", factor=12.0, exponent=0.75), twin, rtol=1e-13)


@pytest.mark.parametrize("dim, length, scale", [(128, 2048, 8.0), (64, 4096, 4.0), (16, 32, 3.0)])
def test_ntk_by_parts_against_a_twin(dim, length, scale):
    def share(first, second, m):
        turns = lambda r: dim * math.log(length / (2 * math.pi * r)) / (2 * math.log(1e4))
        low, high = max(math.floor(turns(first)), 0), min(math.ceil(turns(second)), dim - 1)
        high += 0.001 if high == low else 0
        return min(max((m - low) / (high - low), 0), 1)

    twin = []
    for m in range(dim // 2):
        own = 1e4 ** (-2 * m / dim)
        aware = (1e4 * scale ** (dim / (dim - 2))) ** (-2 * m / dim)
        slow = share(1.25, 0.75, m)
        scaled = own / scale * slow + aware * (1 - slow)
        slow = share(16, 2, m)
        twin.append(scaled * slow + own * (1 - slow))
    np.testing.assert_allclose(ladder("ntk_by_parts", dim, length, factor=scale), twin, rtol=1e-13)
    assert twin[0] == 1 and twin[-1] == pytest.approx(theta(dim)[-1] / scale)


def test_llama3_goldens():
    found = theta(128, 5e5) / ladder("llama3", base=5e5, original_length=8192)
    wanted = [1, 1.207484, 1.553415, 2.026313, 2.694530, 3.684253, 5.257327, 8]
    assert found[28:36] == pytest.approx(wanted, abs=1e-6)
    assert found[:28] == pytest.approx(1) and found[36:] == pytest.approx(8)
    with pytest.raises(ConfigError, match="greater high_freq, not 1"):
        ladder("llama3", high_freq=1.0)


def test_resonance_repeats_exactly():
    wave = 2 * np.pi / ladder("resonance")
    np.testing.assert_allclose(wave, [round(2 * math.pi * 1e4 ** (2 * m / 128)) for m in PAIRS],
                               rtol=1e-14)
    assert wave[:3] == pytest.approx([6, 7, 8])
    both = 2 * np.pi / ladder("resonance", factor=8.0, original_length=2048)
    yarn = 2 * np.pi / ladder("yarn", factor=8.0, original_length=2048)
    np.testing.assert_allclose(both, np.round(yarn), rtol=1e-14)  # rounded after scaling
    assert make(dict(name="resonance", factor=8.0)).amplitude() ** 2 == pytest.approx(1.45913, 1e-5)
    assert make("resonance").amplitude() == 1
    lanes, _ = speak("resonance", L.sequence(1, 1), dim=128)
    ids = np.stack([np.arange(3), 700_000 + np.arange(3)])[:, :, None]
    early, late = L.phase(lanes.transport, ids.astype(np.float32))
    np.testing.assert_allclose(np.exp(1j * early[:, 1]), np.exp(1j * late[:, 1]), atol=3e-6)  # 7s


def test_long_rope_switches_once_the_text_is_long():
    short, long = np.linspace(1.0, 1.5, 64), np.linspace(1.0, 60.0, 64)
    options = dict(short=tuple(short), long=tuple(long), factor=32.0)
    for length, factors in ((7, short), (4096, short), (4097, long), (10**6, long)):
        np.testing.assert_allclose(told("long_rope", length, **options), theta(128) / factors,
                                   rtol=0, atol=EXACT)
    np.testing.assert_allclose(told("long_rope", 5000, factor=16.0), theta(128) / 16, rtol=0,
                               atol=EXACT)
    g = lambda **options: make(dict(name="long_rope", **options), train_length=4096).amplitude()
    assert g(factor=8.0) == pytest.approx(1.118034, abs=1e-6)
    assert g(factor=32.0) == pytest.approx(1.190238, abs=1e-6)
    assert g(factor=0.5) == 1 and g(attention_factor=1.3) == 1.3
    with pytest.raises(ConfigError, match="one for each of 64 pairs; there are 3, the least is 1"):
        told("long_rope", 9, long=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match="above 0"):
        told("long_rope", 9, long=0.0)
    with pytest.raises(ConfigError, match="a factor above 1"):
        told("long_rope", 9, dynamic=True, factor=1.0)


def test_dynamic_long_rope_grows_with_the_length():
    long = np.linspace(1.0, 60.3, 64)
    options = dict(long=tuple(long), factor=32.0, dynamic=True)
    for length in (5, 4096, 6000, 65536, 32 * 4096):
        share = (max(length, 4096) / 4096 - 1) / 31  # lengths below L0 stay at 1
        np.testing.assert_allclose(told("long_rope", length, **options),
                                   theta(128) / (1 + (long - 1) * share), rtol=0, atol=EXACT)
    np.testing.assert_allclose(told("long_rope", 32 * 4096, **options), theta(128) / long,
                               rtol=0, atol=EXACT)


def test_dynamic_ntk_is_exact_in_single_precision():
    found = told("dynamic_ntk", 100_000, factor=2.0)
    growth = 2 * 100_000 / 4096 - 1
    np.testing.assert_allclose(found, theta(128, 1e4 * growth ** (128 / 126)), rtol=0, atol=EXACT)


def test_yarn_scales_the_whole_logit_as_deepseek_does():
    spec = dict(name="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0, softmax_mscale=1.0)
    lanes, _ = speak(spec, L.sequence(1, 3))
    assert float(lanes.transport.amplitude) == 1
    np.testing.assert_allclose(lanes.temperature.factor, np.full((1, 3, 1), 1.87385), rtol=1e-5)
    assert speak("yarn", L.sequence(1, 3))[0].temperature is None
