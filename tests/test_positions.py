"""Schemes: published numbers, limits in which one scheme is another, and what raises.

Every scheme's logits are compared with a float64 twin in NumPy, written from the formula alone.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, positions, sharding
from lcx.errors import ConfigError
from lcx.ops import endpoint, pairs
from lcx.positions import alibi, cope, fox, listing, randomized, t5_bias

HEADS, DIM, WIDTH = 4, 8, 16
EXAMPLES = [dict(name=name, **options) for name in lookup.names(positions.PACKAGE)
            for options in lookup.find(positions.PACKAGE, name).examples]


def site(dim=DIM, heads=HEADS, kv_heads=None, train_length=16, causal=True):
    return L.Site(heads, kv_heads or heads, dim, dim, WIDTH, train_length, causal, dim)


def make(spec, **where):
    return positions.make(spec, site(**where))


def speak(spec, seq, x=None, change=None, **where):
    """The lanes and variables of a scheme at fresh parameters, moved by change(variables)."""
    scheme = make(spec, **where)
    x = jnp.zeros((1, seq.order.shape[1], WIDTH)) if x is None else x

    @jax.jit
    def run(x, seq):
        carry = scheme.init_carry(x.shape[0])
        found = nn.unbox(scheme.init(jax.random.key(0), x, seq, carry, method="lanes"))
        found = found if change is None else change(found)
        return scheme.apply(found, x, seq, carry, method="lanes")[0], found

    return run(x, seq)


def logits(spec, query, key, seq, x=None, change=None, **where):
    """Logits [H,T,S] of softmax attention under a scheme, -inf where masked; and variables."""
    where = dict(dim=query.shape[-1], heads=query.shape[2], kv_heads=key.shape[2]) | where

    @jax.jit
    def run(query, key, seq, x):
        lanes, found = speak(spec, seq, x, change, **where)
        total, path = pairs.integrals(lanes), pairs.path_of(lanes.transport)
        extras = pairs.extras_of(lanes)
        queries = pairs.Queries(query, seq, total, path, extras)
        keys = pairs.Keys(key, key, seq, total, path, extras)
        scale = query.shape[-1] ** -0.5
        out = pairs.scores(queries, keys, lanes.transport, query.shape[-1]) * scale
        if lanes.temperature is not None:
            out = out * jnp.swapaxes(lanes.temperature.factor, 1, 2)[..., None]
        allowed = pairs.mask(seq, seq, causal=where.get("causal", True))
        bias = pairs.log_bias(queries, keys, lanes.bias, allowed, scale)
        out = out if bias is None else out + bias
        return jnp.where(allowed[:, None], out, -jnp.inf)[0], found

    out, found = run(query, key, seq, x)
    return np.asarray(out), found


def vectors(length, dim=DIM, heads=HEADS, kv_heads=None, seed=0):
    q, k, x = (np.random.default_rng((seed, n)).normal(size=shape) for n, shape in enumerate(
        [(1, length, heads, dim), (1, length, kv_heads or heads, dim), (1, length, WIDTH)]))
    return jnp.asarray(q), jnp.asarray(k), jnp.asarray(x)


def turned(query, key, angle, interleaved=False):
    """Twin: Re(sum q_m conj(k_m) e^(i angle)) [H,T,S] for angles [T,S,P] of pair (i, j)."""
    q, k = np.asarray(query[0]), np.asarray(key[0])
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    width = 2 * angle.shape[-1]
    if interleaved:
        first, second = slice(0, width, 2), slice(1, width, 2)
    else:
        first, second = slice(0, width // 2), slice(width // 2, width)
    q_complex, k_complex = (a[..., first] + 1j * a[..., second] for a in (q, k))
    score = np.einsum("thp,shp,tsp->hts", q_complex, k_complex.conj(), np.exp(1j * angle)).real
    return score + np.einsum("thk,shk->hts", q[..., width:], k[..., width:])


def below(length):
    return np.tri(length, dtype=bool)


def same(actual, wanted, tolerance=1e-9):
    seen = np.isfinite(actual)
    assert np.array_equal(seen, np.broadcast_to(below(seen.shape[-1]), seen.shape))
    np.testing.assert_allclose(actual[seen], np.broadcast_to(wanted, seen.shape)[seen],
                               rtol=tolerance, atol=tolerance)


def distances(length):
    return np.subtract.outer(np.arange(length), np.arange(length)).astype(float)


def theta(dim, base=1e4):
    return np.array([base ** (-2 * m / dim) for m in range(dim // 2)])


# ---- rotations -----------------------------------------------------------------------------------


def test_rope_golden_and_layouts(x64):
    q = jnp.zeros((1, 4, 1, 2)).at[..., 0].set(1.0)
    got, _ = logits("rope", q, q, L.sequence(1, 4))
    assert got[0, 3, 1] * math.sqrt(2) == pytest.approx(-0.41614684, abs=1e-8)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 1, 8)))
    halves, _ = speak("rope", L.sequence(1, 5))
    twos, _ = speak(dict(name="rope", interleaved=True), L.sequence(1, 5))
    angle = L.phase(halves.transport, L.sequence(1, 5).ids)
    perm = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    half = endpoint.rotate(x[..., perm], angle, 8)
    two = endpoint.rotate(x, angle, 8, twos.transport.interleaved)
    np.testing.assert_array_equal(two[..., perm], half)
    # the direction: (1,0) at id 1 turns to (cos, +sin)
    angle = L.phase(L.Rotation(L.split_frequency(np.ones(1))), L.sequence(1, 4).ids)
    unit = endpoint.rotate(q, angle, 2)
    np.testing.assert_allclose(unit[0, 1, 0], [math.cos(1), math.sin(1)], atol=1e-12)


@pytest.mark.parametrize("spec, ladder, gain", [
    (dict(name="rope", base=100.0), theta(8, 100.0), 1),
    (dict(name="rope", interleaved=True), theta(8), 1),
    (dict(name="rope", fraction=0.5), theta(4), 1),
    (dict(name="pi", factor=3.0), theta(8) / 3, 1),
    (dict(name="ntk", factor=4.0), theta(8, 1e4 * 4 ** (8 / 6)), 1),
    (dict(name="dynamic_ntk", factor=2.0, original_length=4), theta(8, 1e4 * 5 ** (8 / 6)), 1),
    (dict(name="yarn", factor=1.0), theta(8), 1),
    (dict(name="pi", factor=1.0), theta(8), 1),
    (dict(name="ntk", factor=1.0), theta(8), 1),
    (dict(name="dynamic_ntk", factor=3.0), theta(8), 1),
    (dict(name="yarn", factor=8.0, attention_factor=1.5, original_length=64, truncate=False),
     None, 2.25),
], ids=str)
def test_rotations_against_a_twin(spec, ladder, gain, x64):
    length = 12  # told to dynamic_ntk: 2 x 12/4 - 1 = 5 times the base exponent
    q, k, _ = vectors(length, kv_heads=2)
    if ladder is None:  # YaRN's ramp, from the number of turns over the original length
        raw = [8 * math.log(64 / (2 * math.pi * turns)) / (2 * math.log(1e4)) for turns in (32, 1)]
        low, high = max(raw[0], 0), min(raw[1], 7)
        ladder = np.array([t / 8 * r + t * (1 - r) for t, r in zip(
            theta(8), (min(max((m - low) / (high - low), 0), 1) for m in range(4)))])
    angle = distances(length)[..., None] * ladder
    wanted = gain * turned(q, k, angle, spec.get("interleaved", False)) / math.sqrt(8)
    got, _ = logits(spec, q, k, L.sequence(1, length))
    same(got, wanted, 2e-6 if spec["name"] in ("dynamic_ntk", "yarn") else 1e-9)


def test_ntk_goldens():
    slowest = lambda name, dim, **options: make(dict(name=name, **options), dim=dim).ladder()[-1]
    for dim, factor, base in ((128, 4, 40889.94), (128, 8, 82684.62), (128, 16, 167198.74),
                              (64, 4, 41829.37)):
        scheme = make(dict(name="ntk", factor=float(factor)), dim=dim)
        np.testing.assert_allclose(scheme.ladder(), theta(dim, base), rtol=1e-6)
        assert scheme.ladder()[0] == 1
        assert slowest("ntk", dim, factor=factor) == pytest.approx(slowest("rope", dim) / factor)


@pytest.mark.parametrize("factor, length, base", [
    (1.0, 8192, 20221.26), (2.0, 8192, 30527.74), (4.0, 8192, 51293.79), (4.0, 4096, 1e4),
    (4.0, 100, 1e4)])
def test_dynamic_ntk_goldens(factor, length, base):
    spec = dict(name="dynamic_ntk", factor=factor)
    seq = L.sequence(1, 1, told_length=length)
    lanes, _ = speak(spec, seq, dim=128, train_length=4096)
    got = 2 * np.pi * np.asarray(lanes.transport.frequency, np.float64).sum(0)
    np.testing.assert_allclose(got, theta(128, base), rtol=1e-6)


@pytest.mark.parametrize("dim, base, length, low, high", [
    (128, 1e4, 2048, 16, 41), (128, 1e4, 4096, 20, 46), (64, 1e4, 4096, 10, 23),
    (128, 5e5, 8192, 18, 35)])
def test_yarn_ramp_goldens(dim, base, length, low, high):
    scheme = make(dict(name="yarn", base=base), dim=dim, train_length=length)
    assert scheme.ends() == (low, high)
    assert make(dict(name="yarn", base=base, original_length=length), dim=dim).ends() == (low, high)


def test_yarn_without_rounding_keeps_the_raw_ends():
    scheme = make(dict(name="yarn", base=150000.0, truncate=False), dim=64, train_length=4096)
    assert scheme.ends() == pytest.approx((8.0928, 17.3980), abs=1e-4)
    raw = make(dict(name="yarn", truncate=False), dim=128, train_length=4096).ends()
    assert raw == pytest.approx((20.944, 45.027), abs=1e-3)


def test_yarn_frequencies_and_amplitude_goldens():
    scheme = make(dict(name="yarn", factor=16.0), dim=128, train_length=4096)
    plain = theta(128)
    assert scheme.ladder()[33] == pytest.approx(4.60044e-3, rel=1e-5)
    np.testing.assert_allclose(scheme.ladder()[:21], plain[:21], rtol=1e-14)
    np.testing.assert_allclose(scheme.ladder()[46:], plain[46:] / 16)
    for factor, gain in ((4, 1.29648), (8, 1.45913), (16, 1.63139), (32, 1.81326), (40, 1.87385)):
        assert make(dict(name="yarn", factor=factor)).amplitude() ** 2 == pytest.approx(gain, 1e-5)
    m = lambda c: 0.1 * c * math.log(40) + 1
    both = dict(name="yarn", factor=40, mscale=0.707, mscale_all_dim=1.0)
    assert make(both).amplitude() == pytest.approx(m(0.707) / m(1.0))
    assert make(both | dict(mscale_all_dim=0.0)).amplitude() == pytest.approx(m(1.0))
    assert make(both | dict(attention_factor=1.25)).amplitude() == 1.25
    assert make(dict(name="yarn", factor=1.0)).amplitude() == 1
    assert make("yarn", dim=4, train_length=4).ladder() == pytest.approx([1, 0.01 / 4])  # short L0


def test_m_rope_axes():
    chunked = make("m_rope", dim=128).axis()
    assert chunked == (0,) * 16 + (1,) * 24 + (2,) * 24
    dealt = make(dict(name="m_rope", arrangement="interleaved"), dim=128).axis()
    assert dealt == (0, 1, 2) * 20 + (0,) * 4
    assert make(dict(name="m_rope", sections=(1, 3)), dim=8).axis() == (0, 1, 1, 1)


@pytest.mark.parametrize("arrangement", ["chunked", "interleaved"])
def test_m_rope_against_a_twin_and_rope(arrangement, x64):
    length, spec = 7, dict(name="m_rope", arrangement=arrangement, sections=(2, 1, 1))
    q, k, _ = vectors(length)
    ids = np.random.default_rng(1).integers(0, 50, (1, length, 3)).astype(float)
    ids[0, 3] = ids[0, 2]  # a step of nothing
    axis = [0, 0, 1, 2] if arrangement == "chunked" else [0, 1, 2, 0]
    moved = ids[0][:, axis]
    wanted = turned(q, k, (moved[:, None] - moved[None]) * theta(8)) / math.sqrt(8)
    same(logits(spec, q, k, L.sequence(1, length, ids=ids))[0], wanted)
    text = L.sequence(1, length)
    plain, _ = logits("rope", q, k, text)
    np.testing.assert_array_equal(logits(spec, q, k, text)[0], plain)
    thrice = L.sequence(1, length, ids=np.repeat(text.ids, 3, -1))
    np.testing.assert_array_equal(logits(spec, q, k, thrice)[0], plain)
    with pytest.raises(ValueError, match="reads 3 axes of the ids, the sequence has 2"):
        logits(spec, q, k, L.sequence(1, length, ids=ids[..., :2]))


def test_rerope_stops_at_its_window(x64):
    length, window = 9, 3
    q, k, _ = vectors(length)
    spec = dict(name="rerope", window=window)
    capped = np.minimum(distances(length), window)[..., None] * theta(8)
    same(logits(spec, q, k, L.sequence(1, length))[0], turned(q, k, capped) / math.sqrt(8))
    plain, _ = logits("rope", q, k, L.sequence(1, length))
    wide = logits(dict(name="rerope", window=length), q, k, L.sequence(1, length))[0]
    np.testing.assert_allclose(wide[np.isfinite(wide)], plain[np.isfinite(plain)], rtol=1e-12)
    quarter = speak("rerope", L.sequence(1, 2), train_length=64)[0].transport.params
    assert quarter["window"] == 32


def test_rerope_without_a_mask_stops_on_both_sides(x64):
    q, k, _ = vectors(9)
    got, _ = logits(dict(name="rerope", window=3), q, k, L.sequence(1, 9), causal=False)
    capped = np.clip(distances(9), -3, 3)[..., None] * theta(8)
    np.testing.assert_allclose(got, turned(q, k, capped) / math.sqrt(8), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [64, 128])
def test_phase_is_exact_to_a_million(width):
    ids = np.unique(np.concatenate([np.arange(300), 2 ** np.arange(21), 2 ** np.arange(1, 21) - 1,
                                    np.random.default_rng(0).integers(0, 2**20 + 1, 4000)]))
    rotation = L.Rotation(jnp.asarray(L.split_frequency(theta(width)), jnp.float32))
    got = np.asarray(jax.jit(L.phase)(rotation, jnp.asarray(ids, jnp.float32)[None, :, None]))[0]
    error = got - np.multiply.outer(ids.astype(float), theta(width))
    error -= 2 * np.pi * np.round(error / (2 * np.pi))
    assert np.abs(error).max() < 1e-5


def test_phase_has_the_gradient_of_id_times_frequency(x64):
    ids = jnp.array([0.0, 3.0, 5000.0, 2.0**20, -7.0])[None, :, None]
    one = lambda f: L.phase(L.Rotation(L.split_frequency(f)), ids)[0, :, 0]
    got = jax.jacobian(one)(jnp.array([0.3]))[:, 0]
    np.testing.assert_allclose(got, ids[0, :, 0], rtol=1e-12)


# ---- biases and temperature ----------------------------------------------------------------------


def test_alibi_slopes_goldens():
    np.testing.assert_array_equal(alibi.slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi.slopes(4), [0.25, 0.0625, 0.015625, 0.00390625])
    np.testing.assert_allclose(
        alibi.slopes(12), [*2.0 ** -np.arange(1, 9), 0.70710678, 0.35355339, 0.1767767, 0.08838835],
        rtol=1e-7)
    np.testing.assert_allclose(alibi.slopes(20)[16:],
                               [0.84089642, 0.59460356, 0.42044821, 0.29730178], rtol=1e-7)
    np.testing.assert_array_equal(alibi.slopes(20)[:16], 2.0 ** (-np.arange(1, 17) / 2))
    assert [len(alibi.slopes(heads)) for heads in range(1, 40)] == list(range(1, 40))


def test_alibi_against_a_twin(x64):
    q, k, _ = vectors(6, heads=12)
    bare = turned(q, k, np.zeros((6, 6, 0))) / math.sqrt(8)
    bias = -alibi.slopes(12)[:, None, None] * distances(6)
    same(logits("alibi", q, k, L.sequence(1, 6))[0], bare + bias, 1e-6)
    both, _ = logits("alibi", q, k, L.sequence(1, 6), causal=False)
    np.testing.assert_allclose(both, bare + -np.abs(bias), rtol=1e-6, atol=1e-6)
    spread = L.sequence(1, 6, ids=3.0 * np.arange(6.0)[None, :, None])  # ids count, not tokens
    same(logits("alibi", q, k, spread)[0], bare + 3 * bias, 1e-6)
    falling = L.sequence(1, 3, ids=np.array([0.0, 2.0, 1.0])[None, :, None])
    assert np.isnan(speak("alibi", falling)[0].bias[0].increment[0, 2]).all()


def hugging_bucket(distance, causal, buckets=32, furthest=128):
    """Twin of T5's bucket of distance i - j, by the published formula in Python integers."""
    offset = 0
    if not causal:
        buckets //= 2
        offset = buckets if distance < 0 else 0
        distance = abs(distance)
    distance, exact = max(distance, 0), buckets // 2
    if distance < exact:
        return offset + distance
    grown = math.log(distance / exact) / math.log(furthest / exact) * (buckets - exact)
    return offset + min(buckets - 1, exact + int(grown))


def test_t5_buckets_goldens():
    bucket = t5_bias.bucket_of(32, 128)
    assert [int(np.argmax(bucket == b)) for b in range(16, 32)] == [
        16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert len(bucket) == 114 and bucket[-1] == 31
    lanes, _ = speak("t5_bias", L.sequence(1, 2))
    assert lanes.bias[0].window == 113
    assert t5_bias.bucket_of(4, 8).tolist() == [0, 1, 2, 2, 3]  # 4 = 2 x sqrt(8/2), exactly


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("buckets, furthest", [(32, 128), (8, 10), (16, 64), (64, 512)])
def test_t5_buckets_of_every_distance(causal, buckets, furthest):
    spec = dict(name="t5_bias", num_buckets=buckets, max_distance=furthest)
    numbered = lambda found: {"params": {"table": jnp.arange(float(buckets))[:, None]}}
    lanes, _ = speak(spec, L.sequence(1, 2), change=numbered, heads=1, causal=causal)
    reach = np.arange(0 if causal else -1000, 1001)
    got = lanes.bias[0].kernel(lanes.bias[0].params, jnp.asarray(reach, jnp.float32))[:, 0]
    wanted = [hugging_bucket(int(d), causal, buckets, furthest) for d in reach]
    np.testing.assert_array_equal(got, wanted)
    if not causal and buckets == 32:
        golden = {8: 8, 12: 9, 16: 10, 128: 15, -1: 17, -8: 24, -200: 31}  # by i - j
        assert {d: int(got[d + 1000]) for d in golden} == golden


def test_t5_bias_is_unscaled(x64):
    q, k, _ = vectors(20)
    bare = turned(q, k, np.zeros((20, 20, 0))) / math.sqrt(8)
    got, found = logits(dict(name="t5_bias", num_buckets=8, max_distance=10), q, k,
                        L.sequence(1, 20))
    table = np.asarray(found["params"]["table"], np.float64)
    bucket = np.vectorize(lambda d: hugging_bucket(int(d), True, 8, 10))(distances(20))
    same(got, bare + np.moveaxis(table[bucket], -1, 0))


def test_fox_bias_goldens():
    assert fox.bias(10.0) == pytest.approx(2.2521685, abs=1e-6)
    assert fox.bias(1000.0) == pytest.approx(6.9072552, abs=1e-4)
    assert jax.nn.sigmoid(fox.bias(10.0)) == pytest.approx(0.9048374, abs=1e-6)
    _, found = speak(dict(name="fox", times=(4.0, 64.0)), L.sequence(1, 2), heads=64)
    gate = found["params"]["gate"]["bias"]
    time = -1 / np.log(1 / (1 + np.exp(-np.asarray(gate, np.float64))))
    assert 3.9 < time.min() < 8 and 32 < time.max() < 64.2
    assert np.abs(np.mean(np.log2(time)) - 4) < 0.5  # log-uniform: the median is 16


def test_fox_against_a_twin_and_alibi(x64):
    length = 7
    q, k, x = vectors(length)
    got, found = logits("fox", q, k, L.sequence(1, length), x)
    gate = found["params"]["gate"]
    z = np.asarray(x[0]) @ np.asarray(gate["kernel"], float) + np.asarray(gate["bias"], float)
    log_gate = -np.log1p(np.exp(-z))
    bias = np.zeros((HEADS, length, length))
    for i in range(length):
        for j in range(i):
            bias[:, i, j] = log_gate[j + 1: i + 1].sum(0)  # gate j itself is not counted
    same(got, turned(q, k, np.zeros((length, length, 0))) / math.sqrt(8) + bias)
    slope = alibi.slopes(HEADS)
    constant = lambda found: {"params": {"gate": {  # sigmoid(b) = e^-slope
        "kernel": 0 * found["params"]["gate"]["kernel"], "bias": -jnp.log(jnp.expm1(slope))}}}
    same(logits("fox", q, k, L.sequence(1, length), x, constant)[0],
         logits("alibi", q, k, L.sequence(1, length))[0])


def test_cope_counts_gates():
    table = jnp.zeros((2, 6)).at[0].set(jnp.arange(6.0))  # e makes the bias read p itself
    query, key = jnp.zeros((1, 4, 1, 2)).at[..., 0].set(1.0), jnp.zeros((1, 4, 1, 2))
    mask = jnp.tri(4, dtype=bool)[None]
    got = cope.bias(table, L.Tile(query, key, mask, None, None, 1.0))[0, 0]
    np.testing.assert_allclose(got[3], [2, 1.5, 1, 0.5])
    sure = key.at[..., 0].set(1e4)  # gates of 1: p = distance + 1, cut at P-1
    far = cope.bias(table[:, :4], L.Tile(query, sure, mask, None, None, 1.0))[0, 0]
    np.testing.assert_allclose(far[3], [3, 3, 2, 1])
    np.testing.assert_allclose(far[1, :2], [2, 1])  # later keys open no gate
    np.testing.assert_allclose(
        cope.scaled_bias(table, L.Tile(query, key, mask, None, None, 0.5))[0, 0, 3],
        np.array(got[3]) / 2)


@pytest.mark.parametrize("scaled", [True, False])
def test_cope_against_a_twin(scaled, x64):
    length, rows = 8, 4
    q, k, _ = vectors(length, kv_heads=2)
    e = np.random.default_rng(3).normal(size=(DIM, rows))
    spec = dict(name="cope", positions=rows, scaled=scaled)
    got, _ = logits(spec, q, k, L.sequence(1, length),
                    change=lambda found: {"params": {"table": jnp.asarray(e)}})
    bare = turned(q, k, np.zeros((length, length, 0))) / math.sqrt(DIM)
    wanted = bare.copy()
    for h in range(HEADS):
        for i in range(length):
            gate = 1 / (1 + np.exp(-bare[h, i, : i + 1]))
            for j in range(i + 1):
                p = min(gate[j:].sum(), rows - 1)
                low = math.floor(p)
                row = (1 - (p - low)) * e[:, low] + (p - low) * e[:, min(low + 1, rows - 1)]
                bias = float(np.asarray(q[0, i, h]) @ row)
                wanted[h, i, j] += bias / math.sqrt(DIM) if scaled else bias
    same(got, wanted)
    untrained, found = logits(spec, q, k, L.sequence(1, length))
    assert not found["params"]["table"].any()
    same(untrained, bare)


def test_log_n_goldens():
    seq = L.sequence(1, 65536)
    factor = speak("log_n", seq, train_length=4096)[0].temperature.factor[0, :, 0]
    for n, wanted in ((8192, 1.083333), (16384, 1.166667), (65536, 1.333333), (4096, 1), (7, 1)):
        assert factor[n - 1] == pytest.approx(wanted, abs=2e-6)
    trained = dict(name="log_n", trained=True, original_length=4096)
    factor = speak(trained, seq)[0].temperature.factor[0, :, 0]
    assert factor[63] == pytest.approx(0.5, abs=1e-6) and factor[0] == 0
    assert factor[8191] == pytest.approx(1.083333, abs=2e-6)
    moved = seq.replace(ids=seq.ids + 999)  # it counts tokens, whatever their ids
    np.testing.assert_array_equal(speak(trained, moved)[0].temperature.factor[0, :, 0], factor)


def test_log_n_restarts_with_each_document_and_spares_biases(x64):
    segment = np.array([[1, 1, 1, 2, 2, 2]])
    seq = L.sequence(1, 6, segment=segment)
    spec = ["alibi", dict(name="log_n", trained=True, original_length=8)]
    q, k, _ = vectors(6)
    got, _ = logits(spec, q, k, seq)
    n = np.array([1, 2, 3, 1, 2, 3])
    bare = turned(q, k, np.zeros((6, 6, 0))) / math.sqrt(8) * (np.log(n) / np.log(8))[:, None]
    wanted = bare - alibi.slopes(HEADS)[:, None, None] * distances(6)
    seen = (segment[0][:, None] == segment[0]) & below(6)
    np.testing.assert_allclose(got[:, seen], wanted[:, seen], atol=1e-6)
    assert np.isneginf(got[:, ~seen]).all()


# ---- PaTH ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(rank=None, window=None), dict(rank=3, window=2)],
                         ids=str)
def test_path_against_a_twin(options, x64):
    length, kv = 9, 2
    q, k, x = vectors(length, kv_heads=kv)
    segment = np.array([[1] * 4 + [2] * 5])
    seq = L.sequence(1, length, segment=segment)
    got, found = logits(dict(name="path", **options), q, k, seq, x)
    p = jax.tree.map(lambda a: np.asarray(a, float), found["params"])
    w = np.asarray(x[0])
    if "narrow" in p:
        w = w @ p["narrow"]["kernel"]
    w = np.einsum("tr,rnk->tnk", w, p["vector"]["kernel"])
    if "conv" in p:
        read = np.zeros_like(w)
        for t in range(length):
            for s in range(len(p["conv"])):
                if t - s >= 0 and segment[0, t - s] == segment[0, t]:
                    read[t] += p["conv"][len(p["conv"]) - 1 - s] * w[t - s]
        w = read
    w = w / (1 + np.exp(-w))
    w = w / np.sqrt((w ** 2).sum(-1, keepdims=True) + 1e-6)
    beta = 2 / (1 + np.exp(-(np.asarray(x[0]) @ p["beta"]["kernel"] + p["beta"]["bias"])))
    assert ("narrow" in p, "conv" in p) == (options.get("rank", 32) is not None,
                                            options.get("window", 3) is not None)
    for h in range(HEADS):
        n = h * kv // HEADS
        for i in range(length):
            for j in range(i + 1):
                if segment[0, i] != segment[0, j]:
                    assert np.isneginf(got[h, i, j])
                    continue
                moved = np.asarray(q[0, i, h])
                for s in range(i, j, -1):
                    moved = moved - beta[s, n] * (w[s, n] @ moved) * w[s, n]
                wanted = np.asarray(k[0, j, n]) @ moved / math.sqrt(DIM)
                assert got[h, i, j] == pytest.approx(wanted, abs=1e-9)


# ---- limits in which a scheme says nothing -------------------------------------------------------

_ZERO = lambda found: jax.tree.map(jnp.zeros_like, found)


def _bias_to(value, name):
    return lambda found: {**found, "params": {**found["params"], name: {
        "kernel": 0 * found["params"][name]["kernel"],
        "bias": value + 0 * found["params"][name]["bias"]}}}


@pytest.mark.parametrize("spec, change", [
    ("alibi", _ZERO), ("t5_bias", _ZERO), ("cope", None), ("rope", _ZERO), ("no_pe", None),
    ("log_n", None), ("randomized", None), ("fox", _bias_to(800.0, "gate")),
    ("path", _bias_to(-800.0, "beta")), ("learned", None), ("sinusoidal", None)])
def test_limits_that_equal_no_position(spec, change, x64):
    q, k, x = vectors(10)
    bare = turned(q, k, np.zeros((10, 10, 0))) / math.sqrt(8)
    same(logits(spec, q, k, L.sequence(1, 10), x, change)[0], bare, 1e-12)


# ---- input lanes ---------------------------------------------------------------------------------


def embed(spec, seq, x=None, width=WIDTH, train_length=16):
    (module,) = positions.make_embed(spec, width, train_length)
    x = jnp.zeros((1, seq.order.shape[1], width)) if x is None else x
    found = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, L.sequence(1, 1)))
    return module, found, x


def test_sinusoid_identities(x64):
    seq = L.sequence(1, 300)
    module, found, x = embed("sinusoidal", seq, width=64)
    wave = np.asarray(module.apply(found, x, seq))[0]
    gram = wave @ wave.T
    np.testing.assert_allclose(np.diag(gram), 32, rtol=1e-12)
    np.testing.assert_allclose(gram, np.cos(distances(300)[..., None] * theta(64)).sum(-1),
                               atol=1e-9)
    assert wave[3, 0] == pytest.approx(math.sin(3)) and wave[3, 1] == pytest.approx(math.cos(3))
    module, found, x = embed(dict(name="sinusoidal", interleaved=False), seq, width=64)
    halves = np.asarray(module.apply(found, x, seq))[0]
    np.testing.assert_allclose(halves, np.concatenate([wave[:, 0::2], wave[:, 1::2]], 1))
    with pytest.raises(ConfigError, match="even width, not 63"):
        embed("sinusoidal", seq, width=63)


def test_learned_adds_the_row_of_each_id():
    seq = L.sequence(1, 16)
    module, found, x = embed("learned", seq, x=jnp.ones((2, 16, WIDTH)))
    table = found["params"]["table"]
    assert table.shape == (16, WIDTH)
    moved = L.sequence(1, 16, ids=np.arange(16.0)[None, ::-1, None])
    np.testing.assert_array_equal(module.apply(found, x, moved), 1 + jnp.stack([table[::-1]] * 2))
    used = jax.grad(lambda v: module.apply(v, x[:, :5], L.sequence(1, 5)).sum())(found)
    assert (used["params"]["table"][:5] == 2).all() and not used["params"]["table"][5:].any()
    assert embed(dict(name="learned", rows=40), seq)[1]["params"]["table"].shape == (40, WIDTH)
    small = embed(dict(name="learned", rows=4000, scale=0.02), seq)[1]["params"]["table"]
    assert np.std(small) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("ids", [16.0, -1.0, 2.5, 1e9, np.nan])
def test_learned_never_reads_outside_its_table(ids):
    seq = L.sequence(1, 3, ids=np.array([0.0, ids, 15.0])[None, :, None])
    module, found, x = embed("learned", seq)
    with pytest.raises(ValueError, match=r"vectors for ids 0\.\.15, not for .*larger `rows`"):
        module.apply(found, x, seq)
    with pytest.raises(ValueError, match="ids 0..15"):  # ids known to a trace, as in evaluation
        jax.eval_shape(lambda found: module.apply(found, x, seq), found)
    out = jax.jit(module.apply)(found, x, seq)
    assert np.isnan(out[0, 1]).all() and np.isfinite(out[0, ::2]).all()


def test_learned_padding_may_have_any_id():
    segment = np.array([[1] * 10 + [0] * 20])
    seq = L.sequence(1, 30, segment=segment)
    module, found, x = embed("learned", seq, train_length=12)
    out = module.apply(found, x, seq)
    assert np.isfinite(out).all() and not out[0, 22:].any()


# ---- id maps -------------------------------------------------------------------------------------


def test_randomized_draws_distinct_sorted_ids_for_each_document():
    spec = dict(name="randomized", max_length=40)
    segment = np.array([[1] * 5 + [2] * 9 + [1] * 6, [3] * 20])
    seq = L.sequence(2, 20, segment=segment)
    remap = jax.jit(lambda key: make(spec).remap(seq, key).ids)
    draws = np.stack([remap(jax.random.key(n)) for n in range(300)])[..., 0]
    assert draws.min() == 0 and draws.max() == 39 and (draws == np.round(draws)).all()
    for row, a, b in ((0, 0, 5), (0, 5, 14), (0, 14, 20), (1, 0, 20)):
        ids = draws[:, row, a:b]
        assert (np.diff(ids, axis=1) > 0).all()
        k, n = np.arange(1, b - a + 1), b - a
        np.testing.assert_allclose(ids.mean(0), k * 41 / (n + 1) - 1, atol=2.0)
    assert (draws[:, 0, 14:] != draws[:, 0, :6]).any() and (draws[0] != draws[1]).any()
    rows = make(spec).remap(L.sequence(2, 20), jax.random.key(0)).ids
    assert (rows[0] != rows[1]).any()
    moved = make(spec).remap(seq, jax.random.key(0))
    np.testing.assert_array_equal(moved.index, seq.index)
    assert make(spec).remap(L.sequence(1, 40), jax.random.key(0)).ids.tolist() == [
        [[float(n)] for n in range(40)]]  # all of the range: only one way


def test_randomized_in_evaluation():
    seq = L.sequence(1, 10)
    assert make("randomized").remap(seq) is seq
    spec = dict(name="randomized", max_length=2048, evaluation="expected")
    ids = make(spec).remap(seq).ids[0, :, 0]
    assert ids[0] == pytest.approx(185.27, abs=0.01) and ids[9] == pytest.approx(1861.73, abs=0.01)
    piece = make(spec).remap(seq[4:6]).ids  # a stream keeps the length it was told
    np.testing.assert_array_equal(piece[0, :, 0], ids[4:6])


def test_randomized_sorts_within_runs_only():
    segment, ids = jnp.array([[1, 1, 2, 1, 1]]), jnp.array([[9, 2, 7, 8, 3]])
    assert randomized.sorted_within(segment, ids).tolist() == [[2, 9, 7, 3, 8]]
    assert randomized.sorted_within(None, ids).tolist() == [[2, 3, 7, 8, 9]]


# ---- streams, packing, dtypes, axes: every scheme ------------------------------------------------


@pytest.mark.parametrize("spec", ["alibi", "fox", "path"])
@pytest.mark.parametrize("axes", [1, 3])
def test_lanes_of_a_stream_are_those_of_the_whole(spec, axes, x64):
    segment = np.array([[1] * 4 + [2] * 5 + [3] * 3])
    seq = L.sequence(1, 12, segment=segment)
    seq = seq.replace(ids=jnp.repeat(seq.ids, axes, -1))
    x = jnp.concatenate([vectors(12)[2], vectors(12, seed=1)[2]])
    whole, found = speak(spec, seq, x)
    scheme, carry, pieces = make(spec), make(spec).init_carry(2), []
    run = jax.jit(lambda x, seq, carry: scheme.apply(found, x, seq, carry, method="lanes"))
    for a, b in ((0, 3), (3, 4), (4, 5), (5, 11), (11, 12)):
        lanes, after = run(x[:, a:b], seq[a:b], carry)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)
        assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(lambda a: a.dtype, carry)
        carry, pieces = after, [*pieces, lanes]
    joined = jax.tree.map(lambda *a: jnp.concatenate(a, 1), *pieces)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), joined, whole)
    if whole.bias:
        increment = np.asarray(whole.bias[0].increment)
        starts = np.flatnonzero(np.diff(segment[0], prepend=0))
        assert (increment <= 0).all() and not increment[:, starts].any()
        assert (increment[:, np.setdiff1d(np.arange(12), starts)] < 0).all()


@pytest.mark.parametrize("spec", EXAMPLES, ids=str)
def test_every_scheme_declares_axes_and_computes_wide(spec):
    scheme = make(spec, dim=16, kv_heads=2)
    x = jnp.zeros((2, 5, WIDTH), jnp.bfloat16)

    def run(key):
        seq = L.sequence(1, 5)
        return scheme.init_with_output(key, x, seq, scheme.init_carry(2), method="lanes")

    (lanes, carry), found = jax.eval_shape(run, jax.random.key(0))
    assert {a.dtype.name for a in jax.tree.leaves(lanes)} <= {"float32"}
    params = jax.tree.leaves(found.get("params", {}), is_leaf=sharding.is_boxed)
    assert all(sharding.is_boxed(leaf) and leaf.value.dtype == jnp.float32 for leaf in params)
    sharding.shardings(found, sharding.make_mesh(4, 1, 2))
    for module in positions.make_embed(spec, WIDTH, 16):
        found = jax.eval_shape(module.init, jax.random.key(0), x, L.sequence(1, 5))
        assert all(map(sharding.is_boxed, jax.tree.leaves(found, is_leaf=sharding.is_boxed)))
        sharding.shardings(found, sharding.make_mesh(4, 1, 2))
        out = jax.eval_shape(module.apply, found, x, L.sequence(1, 5))
        assert out.dtype == jnp.bfloat16 and out.shape == x.shape
    with jax.enable_x64(True):
        x = x.astype(jnp.float64)
        (lanes, _), _ = jax.eval_shape(run, jax.random.key(0))
        assert {a.dtype.name for a in jax.tree.leaves(lanes)} <= {"float64"}


def test_a_position_stack_is_scanned_over_depth_and_differentiated():
    from lcx.model import build_model

    layers = (dict(position=["path", "fox", "log_n"]),
              dict(position=["randomized", "m_rope", "t5_bias"]))
    model = build_model(dict(vocab_size=7, width=16, depth=4, pattern=layers, mlp=None,
                             position="no_pe", mixer=dict(name="attention", num_heads=2),
                             dtype="bfloat16"), 8)
    tokens, seq = jnp.arange(16).reshape(2, 8) % 7, L.sequence(1, 8)
    found = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens, seq))
    loss = lambda params, key: model.apply({**found, "params": params}, tokens, tokens, seq,
                                           method="score", rngs={"position": key})[0].mean()
    value, slope = jax.jit(jax.value_and_grad(loss))(found["params"], jax.random.key(1))
    assert np.isfinite(value)
    scheme = [slope["layers"][f"layer_{n}"]["mixer"]["position"] for n in (0, 1)]
    for path, leaf in jax.tree_util.tree_leaves_with_path(scheme):
        assert leaf.shape[0] == 2 and np.abs(leaf).max(axis=tuple(range(1, leaf.ndim))).all(), path


def test_listing_describes_every_scheme():
    found = {record["name"]: record for record in positions.describe()}
    assert set(found) == set(lookup.names(positions.PACKAGE))
    lanes = {name: found[name]["lanes"] for name in (
        "no_pe", "learned", "randomized", "rope", "alibi", "t5_bias", "path", "rerope", "cope",
        "log_n")}
    assert lanes == dict(
        no_pe=[], learned=["embed"], randomized=["remap"], rope=["Rotation"], alibi=["Separable"],
        t5_bias=["EventuallyConstant"], path=["Householder"], rerope=["Piecewise"],
        cope=["Pairwise"], log_n=["Temperature"])
    for record in found.values():
        assert set(record) == {"name", "class", "lanes", "paper", "summary"}
        assert record["summary"][-1] in ".:)" and record["paper"]  # never half a sentence
    assert listing.record("fox")["class"] == "SEP"


# ---- what raises ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec, words", [
    (dict(name="rope", fraction=0.4), "even number"),
    (dict(name="rope", fraction=0.1), "even number"),
    (dict(name="ntk", fraction=0.25), "at least 4 rotated channels"),
    (dict(name="dynamic_ntk", fraction=0.25), "at least 4 rotated channels"),
    (dict(name="yarn", factor=0.5), "1 or more"),
    (dict(name="m_rope", sections=(1, 1)), "must add up to the 4"),
    (dict(name="m_rope", sections=(5, -1)), "0 or more"),
    (dict(name="m_rope", sections=(0, 2, 2), arrangement="interleaved"), "give axis 0 more"),
    (dict(name="m_rope", arrangement="chunky"), "did you mean 'chunked'"),
    (dict(name="t5_bias", num_buckets=1), "2 or more"),
    (dict(name="t5_bias", max_distance=16), "max_distance > 16"),
    (dict(name="fox", tines=(1.0, 2.0)), "did you mean 'times'"),
    (dict(name="yarn", beta_fats=1.0), "did you mean 'beta_fast'"),
    (dict(name="alibis"), "did you mean 'alibi'"),
    (dict(name="alibi", site=1), "no option 'site'"),
    (["rope", "path"], "two transport lanes"),
], ids=str)
def test_bad_options_raise(spec, words):
    with pytest.raises(ConfigError, match=words):
        speak(spec, L.sequence(1, 2))


def test_bad_embeds_and_maps_raise():
    with pytest.raises(ConfigError, match="did you mean 'rows'"):
        positions.make_embed(dict(name="learned", row=3), WIDTH, 16)
    key = jax.random.key(0)
    with pytest.raises(ConfigError, match="max_length >= 20 tokens, not 10"):
        make(dict(name="randomized", max_length=10)).remap(L.sequence(1, 20), key)
    with pytest.raises(ConfigError, match="did you mean 'plain'"):
        make(dict(name="randomized", evaluation="plane")).remap(L.sequence(1, 20))
    many = L.sequence(1, 4, ids=np.zeros((1, 4, 3)))
    with pytest.raises(ConfigError, match="one axis, the sequence has 3"):
        make("randomized").remap(many, key)
