"""Settings in which one scheme is another or none, the rank that a class tells, and the page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hankel

from lcx import lanes as L
from lcx import mixers
from lcx.lookup import module
from lcx.ops import endpoint, pairs
from lcx.ops.attention import api
from lcx.ops.attention.weights import Sink
from lcx.ops.linear import linear_attention
from lcx.positions import alibi, fope, kerple, pope
from tests.positions.speaking import kernel_at, softmax, speak, theta, vectors, weights

T, DIM, HEADS = 20, 8, 4
SEQ = L.sequence(1, T)


def only(**values):
    """A change of the parameters of these names; the others stay."""
    return lambda found: {"params": {**found["params"], **{
        name: jnp.full_like(found["params"][name], value) for name, value in values.items()}}}


@pytest.mark.parametrize("spec, change", [
    (dict(name="shaw", clip=4), only(keys=0.0)), (dict(name="xlnet"), None),
    (dict(name="fire", threshold=4.0), only(inner=0.0, offset=1.0)),  # f is constant: of the row
    (dict(name="p_rope", proportion=0.0), None), (dict(name="ss_max", start=0.0), "flat"),
    (dict(name="kerple"), "no floor")], ids=lambda v: v["name"] if isinstance(v, dict) else "")
def test_settings_that_equal_no_position(spec, change, x64, monkeypatch):
    query, key, _ = vectors(T)
    wanted = weights("no_pe", query, key, SEQ)
    if change == "no floor":  # r1 = 0, which the authors' clamp at 0.01 does not reach
        monkeypatch.setattr(kerple, "FLOOR", 0.0)
        change = only(scale=0.0)
    elif change == "flat":  # n^0: all keys alike
        wanted, change = softmax(np.zeros((HEADS, T, T))), None
    elif change is None and spec["name"] == "xlnet":
        change = lambda found: {"params": jax.tree.map(jnp.zeros_like, found["params"])}
    got = weights(spec, query, key, SEQ, change=change)
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_deberta_without_vectors_divides_by_three_times_the_dim(x64):
    query, key, _ = vectors(T)
    bare = np.einsum("thk,shk->hts", query[0], key[0])
    got = weights("deberta", query, key, SEQ, change=only(keys=0.0, queries=0.0))
    np.testing.assert_allclose(got, softmax(bare / np.sqrt(3 * DIM)), atol=1e-7)


def test_fope_of_an_eye_over_all_pairs_is_rope(x64):
    """Identity P1: C = S = I and no frequency dropped."""
    query, key, _ = vectors(T)
    rotation = L.Rotation(jnp.asarray(L.split_frequency(theta(DIM))))
    params = dict(rotation=rotation, mixture=jnp.broadcast_to(jnp.eye(4), (2, HEADS, 4, 4)))
    for x in (query, key):
        np.testing.assert_allclose(
            fope.features(params, x, SEQ.ids),
            endpoint.rotate(x, L.phase(rotation, SEQ.ids), DIM), atol=1e-12)


def test_pope_that_does_not_turn_is_a_softplus_kernel(x64):
    query, key, x = vectors(T)
    found = speak("pope", SEQ, x)[0].transport.params
    still = {**found, "rotation": L.Rotation(jnp.zeros_like(found["rotation"].frequency))}
    got = jnp.einsum("thk,shk->hts", pope.query_features(still, query, SEQ.ids)[0],
                     pope.key_features(still, key, SEQ.ids)[0])
    plus = lambda a: np.log1p(np.exp(np.asarray(a[0])))
    np.testing.assert_allclose(got, np.einsum("thk,shk->hts", plus(query), plus(key)), atol=1e-9)


def test_grape_a_of_constant_gates_is_alibi(x64):
    """Identity P5: softplus(0) on both sides, so a slope of 2 ln 2 m_h."""
    _, _, x = vectors(T)
    nothing = jnp.zeros((1, T, HEADS, DIM))
    got = weights("grape_a", nothing, nothing, SEQ, x)
    away = np.subtract.outer(np.arange(T), np.arange(T))
    slope = 2 * np.log(2) * alibi.slopes(HEADS)[:, None, None]
    np.testing.assert_allclose(got, softmax(-slope * away), atol=1e-7)
    one = weights(dict(name="grape_a", gates="key"), nothing, nothing, SEQ, x)
    np.testing.assert_allclose(one, softmax(-slope / 2 * away), atol=1e-7)


def test_alibi_is_relative_and_no_row_trick(x64):
    """Identity P9: +m j in place of -m (i - j) is the same softmax, not the same linear output."""
    query, key, _ = vectors(T)
    bare = np.einsum("thk,shk->hts", query[0], key[0]) * DIM**-0.5
    slope = alibi.slopes(HEADS)[:, None, None]
    np.testing.assert_allclose(weights("alibi", query, key, SEQ),
                               softmax(bare + slope * np.arange(T)), atol=1e-6)
    lanes, _ = speak("alibi", SEQ)
    ones = jnp.ones((1, T, HEADS, 1))
    relative, _ = linear_attention(ones, ones, ones, log_decay=lanes.bias[0].increment)
    tricked = np.exp(0.25 * np.arange(6)).sum()
    assert tricked / float(relative[0, 5, 0, 0]) == pytest.approx(3.4903, abs=1e-4)


def rank(kernel):
    """Numerical rank of the Hankel matrix 16 x 16 of K(0), K(1), ..."""
    found = np.linalg.svd(hankel(kernel[:16], kernel[15:31]), compute_uv=False)
    return int((found > 1e-10 * found[0]).sum())


def test_the_class_of_a_kernel_is_its_hankel_rank(x64):
    """1 for a decay, 2 for a cosine, w and a tail; KERPLE and the exp of a wave have no end."""
    away = np.arange(31.0)
    seq = L.sequence(1, 31)
    sums = -np.cumsum(np.asarray(speak("alibi", seq)[0].bias[0].increment)[0, :, 0])
    np.testing.assert_allclose(sums, alibi.slopes(HEADS)[0] * away)
    assert rank(np.exp(-sums)) == 1
    lanes, _ = speak("lrpe", seq, dim=2, heads=1, change=only(frequency=0.3))
    pair = jnp.ones((1, 31, 1, 2))  # two equal channels
    feature = lanes.transport.query(lanes.transport.params, pair, seq.ids)[0, :, 0]
    wave = np.asarray(feature @ feature[0]) / 2
    np.testing.assert_allclose(wave, np.cos(0.3 * away), atol=1e-6)
    assert rank(wave) == 2
    number = np.random.default_rng(0).normal(size=(6, HEADS))
    buckets = dict(name="t5_bias", num_buckets=6, max_distance=8)
    lanes, _ = speak(buckets, seq, change=lambda found: {"params": {"table": jnp.asarray(number)}})
    window = lanes.bias[0].window
    few = np.exp(np.asarray(lanes.bias[0].kernel(lanes.bias[0].params, away))[:, 0])
    assert rank(few) == window + 1 == rank(np.r_[few[:window], np.full(31 - window, few[-1])])
    assert rank(np.exp(kernel_at("kerple", away, only(scale=1.0, rate=1.0))[:, 0])) == 9
    one_wave = np.exp(np.cos(0.3 * away))
    assert rank(one_wave) == 15 and rank((away < 8).astype(float)) == 8


def layer(position, x):
    mixer = mixers.make(dict(name="attention", num_heads=2), width=16, train_length=T,
                        position=position)
    found = jax.jit(mixer.init)(jax.random.key(1), x, L.sequence(1, x.shape[1]))
    return lambda x: np.asarray(mixer.apply(found, x, L.sequence(1, x.shape[1]))[0])


def test_no_position_is_a_bag_of_the_past(x64):
    """One layer: the last output does not know the order of the tokens before it."""
    x = jax.random.normal(jax.random.key(0), (1, 9, 16), jnp.float64)
    mixed = x[:, np.r_[np.random.default_rng(0).permutation(8), 8]]
    for position, blind in (("no_pe", True), ("rope", False), ("alibi", False)):
        run = layer(position, x)
        assert np.allclose(run(mixed)[0, -1], run(x)[0, -1], atol=1e-12) == blind
        assert not np.allclose(run(mixed)[0, 4], run(x)[0, 4])


def test_without_a_mask_no_position_is_a_set(x64):
    """Seen in both directions, permuted inputs permute the outputs; ALiBi's do not."""
    query, key, _ = vectors(T)
    value = key[..., ::-1] + query
    order = np.random.default_rng(0).permutation(T)

    @jax.jit
    def run(lanes, *arrays):
        query, key, value = arrays
        total = pairs.integrals(lanes, None)
        return api.attend(pairs.Queries(query, SEQ, total), pairs.Keys(key, value, SEQ, total),
                          lanes, rotary_dim=0, scale=1.0, causal=False)

    moved = [a[:, order] for a in (query, key, value)]
    far = L.Lanes(bias=(L.Toeplitz(kernel=_far, params=jnp.ones(query.shape[2])),))
    for lanes, blind in ((L.Lanes(), True), (far, False)):
        here = np.asarray(run(lanes, query, key, value))[:, order]
        assert np.allclose(run(lanes, *moved), here, atol=1e-12) == blind


def _far(slope, distance):
    return -slope * jnp.abs(distance)[..., None]


def test_a_sink_tells_relative_biases_from_the_row_trick(x64):
    """Identity P9's condition: a weight that is no key's does not move with the row's constant."""
    query, key, _ = vectors(T)
    value = key[..., ::-1] + query
    slope = jnp.asarray(alibi.slopes(HEADS))
    total = lambda lanes: pairs.integrals(lanes, None)

    @jax.jit
    def run(bias, sink):
        lanes = L.Lanes(bias=(bias,))
        return api.attend(pairs.Queries(query, SEQ, total(lanes)),
                          pairs.Keys(key, value, SEQ, total(lanes)), lanes, rotary_dim=0,
                          scale=1.0, normaliser=sink)

    relative, trick = L.Toeplitz(kernel=_far, params=slope), L.Rowwise(kernel=_of_key, params=slope)
    for sink, same in ((None, True), (Sink(jnp.zeros(HEADS)), False)):
        assert np.allclose(run(relative, sink), run(trick, sink), atol=1e-12) == same


def _of_key(slope, distance, row):
    return slope * (row - distance)[..., None]


def test_page_and_pictures_of_all_schemes():
    """docs/positions.md has a row, an entry and a picture of each, and of nothing else."""
    from pathlib import Path

    from lcx import lookup, positions

    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "positions.md").read_text()
    names = set(lookup.names(positions.PACKAGE))
    listed = {line.split("[")[1].split("]")[0] for line in page.splitlines()
              if line.startswith("| [")}
    assert listed == names == {line[4:] for line in page.splitlines() if line.startswith("### ")}
    assert names == {file.stem for file in (docs / "figures" / "positions").glob("*.svg")}
    for name in names:
        assert f"(figures/positions/{name}.svg)" in page
        assert module(positions.PACKAGE, name).__doc__
