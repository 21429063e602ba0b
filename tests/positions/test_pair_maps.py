"""Rotations whose relative id depends on the pair: distances token by token, limits, shifts."""

import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError
from tests.test_positions import (
    below,
    distances,
    logits,
    make,
    same,
    speak,
    theta,
    turned,
    vectors,
)


def relative_ids(spec, query_ids, key_ids, **where):
    """What the pairs (i, j) are turned by, read off the lane value, in ids [T,S]."""
    transport = speak(spec, L.sequence(1, 1), **where)[0].transport
    query, key = (jnp.asarray(a, jnp.float32) for a in (query_ids, key_ids))
    piece = np.asarray(transport.select(transport.params, query[:, None], key[None]))
    maps = [np.subtract.outer(np.asarray(q(transport.params, query)),
                              np.asarray(k(transport.params, key)))
            for q, k in transport.pieces]
    return np.choose(piece, maps) / np.asarray(transport.params.get("near", 1.0))


def dual_chunk(i, j, chunk, local):
    stride = chunk - local
    apart = i // stride - j // stride
    query = [i % stride, min(i % stride + stride, chunk), min(2 * stride - 1, chunk)][min(apart, 2)]
    return query - j % stride


TWINS = {  # spec -> distance of i and j <= i, from the formulas
    "leaky": (dict(name="leaky_rerope", window=4, leak=2.5),
              lambda i, j: i - j if i - j < 4 else 4 + (i - j - 4) / 2.5),
    "leaky_irrational": (dict(name="leaky_rerope", window=4, leak=2.7182818),
                         lambda i, j: i - j if i - j < 4 else 4 + (i - j - 4) / 2.7182818),
    "inverse": (dict(name="leaky_rerope", window=3, leak=0.25),
                lambda i, j: i - j if i - j < 3 else 3 + (i - j - 3) * 4),
    "self_extend": (dict(name="self_extend", window=5, group=3),
                    lambda i, j: i - j if i - j < 5 else i // 3 + 5 - 5 // 3 - j // 3),
    "string": (dict(name="shifted_rope", window=7, local=2),
               lambda i, j: i - j if i - j < 7 else i - j - 5),
    "dca": (dict(name="dca", chunk=7, local=2), lambda i, j: dual_chunk(i, j, 7, 2)),
    "dca_wide": (dict(name="dca", chunk=9, local=6), lambda i, j: dual_chunk(i, j, 9, 6)),
    "dca_8": (dict(name="dca", chunk=24, local=8), lambda i, j: dual_chunk(i, j, 24, 8)),
}


@pytest.mark.parametrize("name", TWINS)
def test_distances_and_logits_against_a_twin(name, x64):
    (spec, distance), length = TWINS[name], 40
    wanted = np.array([[distance(i, j) if j <= i else 0.0 for j in range(length)]
                       for i in range(length)])
    found = relative_ids(spec, np.arange(length), np.arange(length))
    np.testing.assert_allclose(np.where(below(length), found, 0), wanted, atol=1e-5)
    q, k, _ = vectors(length, kv_heads=2)
    got, _ = logits(spec, q, k, L.sequence(1, length))
    same(got, turned(q, k, wanted[..., None] * theta(8)) / np.sqrt(8),
         1e-6 if name == "leaky_irrational" else 1e-9)  # numbers are float32


def test_goldens():
    leaky = relative_ids(dict(name="leaky_rerope", window=4, leak=2.0), [20], 20 - np.arange(7))
    np.testing.assert_array_equal(leaky[0], [0, 1, 2, 3, 4, 4.5, 5])
    inverse = dict(name="leaky_rerope", window=128, leak=1 / 16)
    assert relative_ids(inverse, [511], [0]) == 6256
    extended = relative_ids(dict(name="self_extend", window=8, group=4), [20], np.arange(21))
    np.testing.assert_array_equal(
        extended[0], [11] * 4 + [10] * 4 + [9] * 4 + [8, 7, 6, 5, 4, 3, 2, 1, 0])
    longest = relative_ids("self_extend", [25599], np.arange(25600), train_length=4096)
    assert longest.max() == 4095  # (L0 - w) g + w tokens with the published g = 8, w = 1024
    assert relative_ids("shifted_rope", [131071], [0], train_length=131072) == 131071 - 43253 + 128
    chunks = relative_ids("dca", [4096 * 30], np.arange(4096 * 30), train_length=4096)
    assert chunks.max() == 3072  # min(2s - 1, c) - 0: no distance beyond the chunk
    np.testing.assert_array_equal(chunks[0, -512:], np.arange(512, 0, -1))  # exact within `local`


@pytest.mark.parametrize("spec, equal", [
    (dict(name="leaky_rerope", window=3, leak=1.0), "rope"),
    (dict(name="leaky_rerope", window=99), "rope"),
    (dict(name="leaky_rerope", window=3, leak=1e12), dict(name="rerope", window=3)),
    (dict(name="self_extend", window=3, group=1), "rope"),
    (dict(name="self_extend", window=99, group=4), "rope"),
    (dict(name="shifted_rope", window=99), "rope"),
    (dict(name="shifted_rope", window=5, local=5), "rope"),
    (dict(name="dca", chunk=99, local=9), "rope"),
    (dict(name="dca", chunk=99, local=9, factor=2.0), dict(name="pi", factor=2.0)),
], ids=str)
def test_settings_that_equal_another_scheme(spec, equal, x64):
    q, k, _ = vectors(20)
    wanted, _ = logits(equal, q, k, L.sequence(1, 20))
    got, _ = logits(spec, q, k, L.sequence(1, 20))
    np.testing.assert_allclose(got[:, below(20)], wanted[:, below(20)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("spec, unit", [(dict(name="self_extend", window=6, group=4), 4),
                                        (dict(name="dca", chunk=9, local=2), 7)], ids=str)
def test_relative_for_multiples_of_a_unit_alone(spec, unit):
    ids = np.arange(50)
    plain = np.where(below(50), relative_ids(spec, ids, ids), 0)
    for shift in range(1, 2 * unit + 1):
        moved = np.where(below(50), relative_ids(spec, ids + shift, ids + shift), 0)
        assert (moved == plain).all() == (shift % unit == 0), shift


@pytest.mark.parametrize("spec, distance", [
    (dict(name="leaky_rerope", window=3, leak=2.0), lambda d: min(d, 3) + max(d - 3, 0) / 2),
    (dict(name="shifted_rope", window=5, local=1), lambda d: d if d < 5 else d - 4)],
    ids=["leaky_rerope", "shifted_rope"])
def test_the_future_mirrors_the_past_without_a_mask(spec, distance, x64):
    q, k, _ = vectors(12)
    got, _ = logits(spec, q, k, L.sequence(1, 12), causal=False)
    d = distances(12)
    wanted = np.sign(d) * np.vectorize(distance)(np.abs(d))
    np.testing.assert_allclose(got, turned(q, k, wanted[..., None] * theta(8)) / np.sqrt(8),
                               rtol=0, atol=1e-9)


def test_amplitudes():
    g = lambda length, **options: float(speak(
        dict(name="dca", **options), L.sequence(1, 1, told_length=length),
        train_length=4096)[0].transport.rotation.amplitude or 1.0)
    assert g(65536) == 1 and g(4096, gain=0.05) == 1 and g(9, gain=0.05) == 1
    assert g(32768, gain=0.05) == pytest.approx(0.05 * np.log(8) + 1)
    spec = dict(name="shifted_rope", attention_factor=0.1 * np.log(2) + 1)
    amplitude = speak(spec, L.sequence(1, 1))[0].transport.rotation.amplitude
    assert float(amplitude) == pytest.approx(1.0693147)


@pytest.mark.parametrize("spec, words", [
    (dict(name="leaky_rerope", leak=0.0), "'leaky_rerope.leak' must be float, above 0"),
    (dict(name="self_extend", group=0), "'self_extend.group' must be int, 1 or more"),
    (dict(name="shifted_rope", window=4, local=5), "0 to window 4, not 5"),
    (dict(name="dca", chunk=4, local=4), "not local 4 of chunk 4"),
    (dict(name="pi", factor=0.0), "'pi.factor' must be float, above 0"),
    (dict(name="ntk", factor=-1.0), "'ntk.factor' must be float, above 0")], ids=str)
def test_bad_options_raise(spec, words):
    with pytest.raises(ConfigError, match=words):
        speak(spec, L.sequence(1, 2))


def test_dca_is_causal_only():
    with pytest.raises(ConfigError, match="use it with a causal mixer"):
        speak("dca", L.sequence(1, 2), causal=False)


def test_a_stack_is_relative_for_shifts_that_all_its_parts_allow():
    extended = dict(name="self_extend", window=6, group=4)
    assert make(extended).relative == 4 and make([extended, "log_n"]).relative == 4
    assert make(["randomized", dict(name="dca", chunk=9, local=3), extended]).relative == 12
    assert make(["rope", "log_n"]).relative and not make(["learned", "rope"]).relative


@pytest.mark.parametrize("leak", [16.0, 3.0, 2.5, 1 / 3, 1 / 16])
def test_leaky_distances_are_exact_at_the_millionth_token(leak):
    spec = dict(name="leaky_rerope", window=512, leak=leak)
    transport = speak(spec, L.sequence(1, 1), dim=64)[0].transport
    near, keys = 2**20 - 1 - np.arange(512), np.arange(0, 2**20 - 512, 4099)
    for piece, key, distance in ((0, near, np.arange(512.0)),
                                 (1, keys, 512 + (2**20 - 1 - keys - 512) / leak)):
        turn = lambda one, ids: np.asarray(L.phase(transport.rotation, one(
            transport.params, jnp.asarray(ids, jnp.float32)[None, :, None])), np.float64)[0]
        query_map, key_map = transport.pieces[piece]
        off = turn(query_map, [2**20 - 1.0]) - turn(key_map, key) - distance[:, None] * theta(64)
        assert np.abs(off - 2 * np.pi * np.round(off / (2 * np.pi))).max() < 1e-5
