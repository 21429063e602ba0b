"""KERPLE, Sandwich, CABLE and both-sided ALiBi: published numbers, twins, limits, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.positions import alibi, kerple
from tests import mixer_cases as cases
from tests.positions.speaking import kernel_at, softmax, speak, vectors, weights


def to(**values):
    """Parameters with one value for each head."""
    return lambda found: {"params": {k: jnp.broadcast_to(jnp.asarray(v, float), (4,))
                                     for k, v in values.items()}}


def test_kerple_log_golden(x64):
    got = kernel_at("kerple", np.arange(4), to(scale=1.0, rate=1.0))
    np.testing.assert_allclose(got[:, 0], [0, -0.693147, -1.098612, -1.386294], atol=1e-6)


@pytest.mark.parametrize("variant", ["log", "power"])
def test_kerple_against_a_twin(variant, x64):
    scale, second = np.array([0.3, 1.0, 1.7, 0.004]), np.array([0.2, 0.001, 1.3, 2.9])
    distance = np.array([0.0, 1.0, 2.5, 40.0, 5000.0])
    spec, name = dict(name="kerple", variant=variant), "rate" if variant == "log" else "exponent"
    change = to(scale=scale, **{name: second})
    got = kernel_at(spec, distance, change)
    floor = np.maximum(scale, 0.01)
    if variant == "log":
        wanted = -floor * np.log(1 + np.maximum(second, 0.01) * distance[:, None])
    else:
        wanted = -floor * distance[:, None] ** np.clip(second, 0.01, 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    np.testing.assert_array_equal(kernel_at(spec, -distance, change), got)


def test_kerple_factor_fades_the_product_and_not_the_bias(x64):
    q, k, _ = vectors(9)
    numbers = dict(scale=[0.3, 1.0, 1.7, 0.004], exponent=[0.2, 1.0, 1.3, 2.9],
                   decay=[0.1, 0.02, 2.0, 0.001], shape=[1.0, 0.5, 1.9, 2.5])
    spec = dict(name="kerple", variant="power", factor=True)
    ids = np.array([0, 1, 2, 5, 6, 7, 9, 9.5, 20])
    got = weights(spec, q, k, L.sequence(1, 9, ids=ids[None, :, None]), change=to(**{
        name: jnp.asarray(value) for name, value in numbers.items()}))
    scale, exponent, decay, shape = (np.asarray(v)[:, None, None] for v in numbers.values())
    distance = np.maximum(ids[:, None] - ids, 0.0)
    bias = -np.maximum(scale, 0.01) * distance ** np.clip(exponent, 0.01, 2)
    factor = np.exp(-np.maximum(decay, 0.01) * distance ** np.clip(shape, 0.01, 2))
    product = np.einsum("thk,shk->hts", q[0], k[0]) / 8 ** 0.5
    np.testing.assert_allclose(got, softmax(product * factor + bias), atol=1e-12)


def test_kerple_power_of_one_is_alibi(x64):
    q, k, _ = vectors(9)
    slope = lambda found: {"params": {"scale": jnp.asarray(alibi.slopes(4)),
                                      "exponent": jnp.ones(4)}}
    got = weights(dict(name="kerple", variant="power"), q, k, L.sequence(1, 9), change=slope)
    wanted = weights("alibi", q, k, L.sequence(1, 9))
    assert (alibi.slopes(4) > kerple.FLOOR).tolist() == [True] * 3 + [False]  # 1/256 is below it
    np.testing.assert_allclose(got[:3], wanted[:3], atol=1e-6)
    assert np.abs(got[3] - wanted[3]).max() > 1e-3


def test_kerple_starts_where_its_authors_start():
    for variant, second, ranges in (("log", "rate", (2, 1)), ("power", "exponent", (1, 2))):
        _, found = speak(dict(name="kerple", variant=variant), L.sequence(1, 1), heads=2048)
        for name, most in zip(("scale", second), ranges):
            drawn = np.asarray(found["params"][name])
            assert 0 <= drawn.min() and drawn.max() <= most
            assert drawn.mean() == pytest.approx(most / 2, rel=0.05)


@pytest.mark.parametrize("variant", ["log", "power"])
@pytest.mark.parametrize("value", [-0.5, 0.0, 0.3, 0.9, 2.5])
def test_kerple_gradients_are_finite_at_distance_0_and_alive_at_the_floor(variant, value, x64):
    spec = dict(name="kerple", variant=variant)
    second = "rate" if variant == "log" else "exponent"

    def loss(scale, other):
        lanes, _ = speak(spec, L.sequence(1, 2), change=lambda found: {
            "params": {"scale": scale, second: other}})
        return lanes.bias[0].kernel(lanes.bias[0].params, jnp.arange(4.0)).sum()

    slopes = jax.grad(loss, (0, 1))(jnp.full(4, value), jnp.full(4, value))
    for slope in slopes:
        assert np.isfinite(slope).all() and (np.abs(slope) > 1e-6).all()
    assert (kerple.kept(jnp.array([-1.0, 0.5, 3.0]), 0.01, 2.0) == jnp.array([0.01, 0.5, 2])).all()


def test_sandwich_goldens():
    got = kernel_at("sandwich", [0, 1, 10, 100, 1000, -100])
    np.testing.assert_allclose(got[:, 0], [64, 62.5534, 44.6591, 30.6811, 10.6104, 30.6811],
                               atol=1e-4)
    centred = kernel_at(dict(name="sandwich", centred=True, scale=0.5), [0, 100])
    np.testing.assert_allclose(centred[:, 0], [0, (30.6811 - 64) / 2], atol=1e-4)


def test_sandwich_compressed_is_the_port_of_nemo(x64):
    dim, heads, distance = 32, 4, np.array([0.0, 3.0, 77.0, 2.0**20 - 1])
    got = kernel_at(dict(name="sandwich", dim=dim, centred=True, compress=True), distance)
    inverse = 1.0 / 10000 ** (2 * np.arange(1, dim / 2 + 1) / dim)
    bias = np.cos(distance[:, None] * inverse).sum(1)
    wanted = (bias[:, None] - dim / 2) / (np.arange(1, heads + 1) * 8 / heads)
    np.testing.assert_allclose(got, wanted, atol=1e-6)  # traced numbers are float32


def test_sandwich_is_exact_at_long_distance():
    distance = np.array([2.0**20 - 1, 999_999.0])
    wanted = np.cos(distance[:, None] * 1e4 ** (-2.0 * np.arange(1, 65) / 128)).sum(1)
    np.testing.assert_allclose(kernel_at("sandwich", distance)[:, 0], wanted, atol=1e-4)


def test_e27_sandwich_is_sinusoids_beside_queries_and_keys(x64):
    length, dim, scale = 11, 8, 0.7
    q, k, _ = vectors(length)
    got = weights(dict(name="sandwich", dim=dim, scale=scale), q, k, L.sequence(1, length))
    place = np.arange(length)[:, None] * 1e4 ** (-2.0 * np.arange(1, dim // 2 + 1) / dim)
    extra = np.sqrt(scale) * np.concatenate([np.sin(place), np.cos(place)], 1)
    wanted = np.einsum("thk,shk->hts", q[0], k[0]) / np.sqrt(8) + extra @ extra.T
    cases.close(got, softmax(wanted), 1e-8)  # of float32 frequencies


def test_cable_against_a_twin_and_fox(x64):
    length = 7
    q, k, x = vectors(length)
    kernel = jnp.asarray(np.random.default_rng(5).normal(size=(16, 4)))
    bias = jnp.asarray([0.5, -1.0, 0.0, 2.0])
    put = lambda name, sign: lambda found: {"params": {name: {"kernel": sign * kernel,
                                                              "bias": sign * bias}}}
    got = weights("cable", q, k, L.sequence(1, length), x, put("weight", 1))
    sums = np.cumsum(-np.log1p(np.exp(np.asarray(x[0] @ kernel + bias))), 0)  # S of the code
    wanted = np.einsum("thk,shk->hts", q[0], k[0]) / np.sqrt(8) + (sums[:, None] - sums[None]
                                                                  ).transpose(2, 0, 1)
    np.testing.assert_allclose(got, softmax(wanted), atol=1e-10)
    fox = weights("fox", q, k, L.sequence(1, length), x, put("gate", -1))
    np.testing.assert_allclose(got, fox, atol=1e-12)


def test_alibi_on_both_sides(x64):
    both = dict(name="alibi", both_sides="separated")
    distance = np.arange(-5.0, 6.0)  # i - j: the past is positive
    got = kernel_at(both, distance, heads=12, causal=False)
    wanted = -alibi.slopes(12) * (np.abs(distance) - 0.5 * (distance > 0))[:, None]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    plain = kernel_at("alibi", distance, heads=12, causal=False)
    np.testing.assert_allclose(plain, -alibi.slopes(12) * np.abs(distance)[:, None], rtol=1e-6)


@pytest.mark.parametrize("spec, causal, words", [
    (dict(name="alibi", both_sides="separated"), True, "causal and has no future"),
    (dict(name="alibi", both_sides="symetric"), False, "did you mean 'symmetric'"),
    (dict(name="kerple", variant="pow"), True, "did you mean 'power'|no variant 'pow'"),
])
def test_bad_options_raise(spec, causal, words):
    with pytest.raises(ConfigError, match=words):
        speak(spec, L.sequence(1, 2), causal=causal)


