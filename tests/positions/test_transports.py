"""Transports beyond RoPE: decays in the product, angles from the content, feature maps, values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.ops.linear import linear_attention
from tests.positions.speaking import WIDTH, site, softmax, speak, theta, turned, vectors, weights

T, DIM = 20, 8


def distances(length=T):
    return np.subtract.outer(np.arange(length), np.arange(length)).astype(float)


def zeta(dim=DIM):
    return (2 * np.arange(dim // 2) + 0.4 * dim) / (1.4 * dim)


def test_xpos_ladder_of_decays():
    """Golden values of torchscale's formula for 8 and for 64 channels."""
    numbers = lambda dim: np.exp(512 * make("xpos", dim=dim).numbers()["rate"])
    np.testing.assert_allclose(numbers(8), [0.285714, 0.464286, 0.642857, 0.821429], atol=1e-6)
    np.testing.assert_allclose(numbers(64)[[0, 31]], [0.285714, 0.977679], atol=1e-6)
    np.testing.assert_allclose(numbers(64)[0] ** 2, 0.081633, atol=1e-6)


def make(spec, **where):
    from lcx import positions

    return positions.make(spec, site(**where))


@pytest.mark.parametrize("length", [T, 40])  # more than one block of queries
def test_xpos_scores(length, x64):
    query, key, x = vectors(length)
    spec = dict(name="xpos", interleaved=False, scale=4.0)
    gap = np.maximum(distances(length), 0)[..., None]
    fade, angle = zeta() ** (gap / 4.0), gap * theta(DIM)
    q, k = (np.asarray(a[0])[..., :4] + 1j * np.asarray(a[0])[..., 4:] for a in (query, key))
    score = np.einsum("thp,shp,tsp->hts", q, k.conj(), fade * np.exp(1j * angle)).real
    got = weights(spec, query, key, L.sequence(1, length))
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-12)


def test_xpos_without_decay_is_rope(x64):
    query, key, _ = vectors(T)
    seq = L.sequence(1, T)
    flat = weights(dict(name="xpos", interleaved=False, scale=1e18), query, key, seq)
    np.testing.assert_allclose(flat, weights("rope", query, key, seq), atol=1e-12)


def test_xpos_is_a_constant_gate_per_pair_of_linear_attention(x64):
    """Cell E4: it is gated linear attention on rotated queries and keys."""
    mixer = mixers.make(dict(name="linear_attention", num_heads=2), width=16, train_length=T,
                        position=dict(name="xpos", interleaved=False, scale=8.0))
    x = jax.random.normal(jax.random.key(0), (1, T, 16), jnp.float64)
    found = jax.jit(mixer.init)(jax.random.key(1), x, L.sequence(1, T))
    _, seen = mixer.apply(found, x, L.sequence(1, T), mutable=["intermediates"])
    inner, outer = seen["intermediates"]["inner"][0], seen["intermediates"]["outer"][0]
    angle = np.arange(T)[:, None] * theta(8)
    spin = np.exp(1j * angle)[None, :, None]

    def spun(a):
        both = (np.asarray(a)[..., :4] + 1j * np.asarray(a)[..., 4:]) * spin
        return jnp.asarray(np.concatenate([both.real, both.imag], -1))

    gate = np.broadcast_to(np.tile(np.log(zeta()) / 8.0, 2), (1, T, 2, 8))
    gate = jnp.asarray(np.where(np.arange(T)[None, :, None, None] == 0, 0, gate))
    top, _ = linear_attention(spun(inner["query"]), spun(inner["key"]), inner["value"],
                              log_decay=gate)
    ones = jnp.ones((1, T, 2, 1))
    total, _ = linear_attention(inner["query"], inner["key"], ones)
    np.testing.assert_allclose(outer, top / (total + 1e-6), atol=1e-8)  # float32 rates


def test_wall_with_constant_gates_is_xpos_without_its_rotation(x64):
    """Identity P7, and cell E7: one constant gate per channel, no angle."""
    query, key, x = vectors(T)
    gates = np.linspace(0.2, 0.9, DIM)

    def constant(found):
        bias = jnp.broadcast_to(jnp.log(gates / (1 - gates)), (4, DIM))
        params = dict(kernel=jnp.zeros((WIDTH, 4, DIM)), bias=bias)
        return {"params": {"gate": params}}

    score = np.einsum("thk,shk,tsk->hts", np.asarray(query[0]), np.asarray(key[0]),
                      gates ** np.maximum(distances(), 0)[..., None])
    got = weights("wall", query, key, L.sequence(1, T), x, change=constant)
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-12)


def boost(angle):
    return np.array([[np.cosh(angle), np.sinh(angle)], [np.sinh(angle), np.cosh(angle)]])


@pytest.mark.parametrize("options", [{}, dict(interleaved=False, learned=False, excess=0.25)])
def test_hyperbolic_hope_boosts_pairs(options, x64):
    """Identity P6: the paper's maps of q at i and k at j are two real decays, and no boost."""
    few = 10  # cosh and sinh of absolute ids cancel: even float64 has no digit left at 18
    query, key, x = vectors(few)
    spec, damping = dict(name="hyperbolic_hope", **options), 1 + options.get("excess", 0.974077)
    pairs = [(m, m + 4) if options else (2 * m, 2 * m + 1) for m in range(4)]
    score = np.zeros((4, few, few))
    for (a, b), rate in zip(pairs, theta(DIM)):
        for i in range(few):
            q = np.exp(-i * damping) * np.asarray(query)[0, i][:, [a, b]] @ boost(i * rate)
            for j in range(i + 1):
                k = np.exp(j * damping) * np.asarray(key)[0, j][:, [a, b]] @ boost(-j * rate)
                score[:, i, j] += (q * k).sum(-1)
    got = weights(spec, query, key, L.sequence(1, few), x)
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-6)
    (lane,) = speak(spec, L.sequence(1, 2))[0].values()
    fades = np.sort(np.concatenate([damping - theta(DIM), damping + theta(DIM)]))
    np.testing.assert_allclose(np.sort(-np.asarray(lane.increment)[0, 1, 0]), fades, atol=1e-6)
    plain = np.asarray(lane.basis(jnp.eye(DIM)))
    np.testing.assert_allclose(plain @ plain.T, np.eye(DIM), atol=1e-12)


def test_hyperbolic_hope_is_safe_far_away(x64):
    """cosh of an id overflows float32 from 88 on; the decays do not."""
    query, key, _ = vectors(T)
    seq = L.sequence(1, T, ids=1e5 + np.arange(float(T))[None, :, None])
    spec = dict(name="hyperbolic_hope")
    np.testing.assert_allclose(weights(spec, query, key, seq),
                               weights(spec, query, key, L.sequence(1, T)), atol=1e-12)


def test_lrpe_weighs_each_channel_by_a_cosine(x64):
    """sum_m q_m k_m cos((i - j) f_m), one ladder over the channels of all heads."""
    query, key, x = vectors(T)
    rates = (1e4 ** (-2.0 * np.arange(4 * DIM) / (4 * DIM))).reshape(4, DIM)
    wave = np.cos(distances()[:, :, None, None] * rates)
    score = np.einsum("thk,shk,tshk->hts", np.asarray(query[0]), np.asarray(key[0]), wave)
    got = weights("lrpe", query, key, L.sequence(1, T), x)
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-6)  # float32 frequencies


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_lrpe_rope_divides_the_ladder_among_heads(fraction, x64):
    query, key, _ = vectors(T)
    pairs = int(DIM * fraction) // 2
    rates = (1e4 ** (-2.0 * np.arange(4 * pairs) / (4 * DIM))).reshape(4, pairs)
    score = np.concatenate([
        turned(query[:, :, h:h + 1, :2 * pairs], key[:, :, h:h + 1, :2 * pairs],
               distances()[..., None] * rates[h]) for h in range(4)])
    score += np.einsum("thk,shk->hts", query[0, ..., 2 * pairs:], key[0, ..., 2 * pairs:])
    spec = dict(name="lrpe_rope", fraction=fraction, interleaved=False)
    got = weights(spec, query, key, L.sequence(1, T))
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-9)


def test_wall_survives_closed_gates(x64):
    """A gate that forgets all (log f = -1e4 a token) leaves each token itself, and no NaN."""
    query, key, x = vectors(T)
    closed = lambda found: {"params": {"gate": dict(
        kernel=jnp.zeros((WIDTH, 4, DIM)), bias=jnp.full((4, DIM), -1e4))}}
    score = np.einsum("thk,thk->ht", np.asarray(query[0]), np.asarray(key[0]))
    score = np.where(np.eye(T, dtype=bool), score[:, None], 0.0) * DIM**-0.5
    got = weights("wall", query, key, L.sequence(1, T), x, change=closed)
    np.testing.assert_allclose(got, softmax(score), atol=1e-12)


def clock(name, scheme, position, x, seq):
    lanes, found = speak(scheme, seq, x, position)
    return np.asarray(lanes.transport.phase), found


def test_selective_rope_at_a_constant_rate_is_rope(x64):
    """Identity P1 (E30): phi = 1 for every token and pair. A unit input, one tap, a map to ones."""
    x = jnp.ones((1, T, WIDTH))

    def constant(found):
        params = found["params"]
        slice_norm = (WIDTH // 4) ** -0.5  # each of a head's 4 channels at unit length
        down = jnp.zeros_like(params["down"]["kernel"]).at[:, 0].set(slice_norm)
        up = jnp.zeros_like(params["up"]["kernel"]).at[0].set(1.0)
        conv = jnp.zeros_like(params["conv"]).at[-1].set(1.0)
        return {**found, "params": dict(down=dict(kernel=down), up=dict(kernel=up), conv=conv)}

    spec = dict(name="selective_rope", base=10000.0)
    query, key, _ = vectors(T)
    got = weights(spec, query, key, L.sequence(1, T), x, change=constant)
    np.testing.assert_allclose(got, weights("rope", query, key, L.sequence(1, T)), atol=1e-9)


def test_grape_m_starts_as_rope(x64):
    query, key, _ = vectors(T)
    got = weights("grape_m", query, key, L.sequence(1, T))
    np.testing.assert_allclose(got, weights("rope", query, key, L.sequence(1, T)), atol=1e-6)


def test_grape_m_content_counts_the_tokens_between(x64):
    """The angle from j to i holds the rates of j .. i-1, not that of i."""
    query, key, x = vectors(T)
    rng = np.random.default_rng(3)
    kernel, bias = rng.normal(size=(WIDTH, 1)) * 8, rng.normal(size=1)
    frequency = theta(DIM)

    def drawn(found):
        return {"params": dict(found["params"], rate=dict(kernel=jnp.asarray(kernel),
                                                          bias=jnp.asarray(bias)))}

    rate = 1 / (1 + np.exp(-(np.asarray(x[0]) @ kernel + bias)[:, 0] / 16.0))
    phase = (np.cumsum(rate) - rate)[:, None] * frequency
    angle = phase[:, None] - phase[None]
    got = weights("grape_m_content", query, key, L.sequence(1, T), x, change=drawn)
    np.testing.assert_allclose(got, softmax(turned(query, key, angle) * DIM**-0.5), atol=1e-7)


def test_pope_scores(x64):
    """sum_m |q||k| cos((j - i) f_m + d_m), d clamped to [-2 pi, 0]."""
    query, key, x = vectors(T)
    shift = np.random.default_rng(4).uniform(-8, 1, (4, DIM))
    change = lambda found: {**found, "params": {"shift": jnp.asarray(shift)}}
    plus = lambda a: np.log1p(np.exp(np.asarray(a[0])))
    phase = (-distances()[..., None] * 10000.0 ** (-np.arange(DIM) / DIM))[:, :, None]
    wave = np.cos(phase + np.clip(shift, -2 * np.pi, 0))
    score = np.einsum("thk,shk,tshk->hts", plus(query), plus(key), wave)
    got = weights("pope", query, key, L.sequence(1, T), x, change=change)
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-9)


def test_fope_mixes_the_frequencies_that_training_saw(x64):
    query, key, _ = vectors(T)
    spec = dict(name="fope", base=4.0)
    cosine, sine = make(spec).numbers()["mixture"]  # trained on 16 tokens: 3 of 4 pairs turn once
    kept = 4.0 ** (-np.arange(4) / 4)[:3]
    assert (kept >= 2 * np.pi / 16).all() and cosine.shape == (4, 3, 2)
    eye = np.zeros((3, 2))
    eye[0, 0] = eye[2, 1] = 1
    assert np.abs(cosine - eye).mean() < 0.3 and np.abs(cosine - sine).max() > 0
    angle = np.arange(T)[:, None] * kept
    table = lambda wave, mix: np.concatenate(  # [T,H,4]: two mixtures, two constants
        [np.einsum("tn,hnm->thm", wave, mix), np.ones((T, 4, 2))], -1)
    c, s = (np.tile(table(wave(angle), mix), 2) for wave, mix in ((np.cos, cosine), (np.sin, sine)))

    def mapped(a):
        a = np.asarray(a[0])
        return a * c + np.concatenate([-a[..., 4:], a[..., :4]], -1) * s

    score = np.einsum("thk,shk->hts", mapped(query), mapped(key))
    got = weights(spec, query, key, L.sequence(1, T))
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-6)  # float32 mixtures


def test_fope_has_no_mixture_of_a_frequency_that_is_not_there():
    """Four kept, three mixtures: every second frequency, and the third place is past the last."""
    base = (16 / (2 * np.pi)) ** (6 / 3.5)  # of 6 pairs 4 complete a turn within 16 tokens
    scheme = make(dict(name="fope", gain=0.0, base=base), dim=12)
    mixture = scheme.numbers()["mixture"]
    wanted = np.zeros((4, 3))
    wanted[0, 0] = wanted[2, 1] = 1
    np.testing.assert_array_equal(mixture, np.broadcast_to(wanted, mixture.shape))


def test_vo_rope_turns_what_is_read(x64):
    """o_i = sum_j w_ij R_{j-i} v_j, with the mixer's own weights and values."""
    mixer = mixers.make(dict(name="attention", num_heads=2), width=16, train_length=T,
                        position="vo_rope")
    x = jax.random.normal(jax.random.key(0), (1, T, 16), jnp.float64)
    found = jax.jit(mixer.init)(jax.random.key(1), x, L.sequence(1, T))
    _, seen = mixer.apply(found, x, L.sequence(1, T), mutable=["intermediates"])
    inner, outer = seen["intermediates"]["inner"][0], seen["intermediates"]["outer"][0]
    score = np.einsum("thk,shk->hts", inner["query"][0], inner["key"][0]) * 8**-0.5
    value = np.asarray(inner["value"][0])
    value = value[..., :4] + 1j * value[..., 4:]
    back = np.exp(-1j * distances()[..., None] * theta(8))
    wanted = np.einsum("hts,shp,tsp->thp", softmax(score), value, back)
    np.testing.assert_allclose(outer[0], np.concatenate([wanted.real, wanted.imag], -1), atol=1e-9)


def test_vo_rope_under_a_constant_decay_is_a_complex_recurrence(x64):
    """Identity P12 (E13): h_t = gamma e^(-i theta) h_{t-1} + v_t, read out by a constant query."""
    gamma, value = 0.9, np.random.default_rng(5).normal(size=(T, DIM))
    state, wanted = np.zeros(4, complex), []
    for token in value[:, :4] + 1j * value[:, 4:]:
        state = gamma * np.exp(-1j * theta(DIM)) * state + token
        wanted.append(np.concatenate([state.real, state.imag]))
    rotation = speak("vo_rope", L.sequence(1, T))[0].value
    from lcx.ops import endpoint

    seq, ones = L.sequence(1, T), jnp.ones((1, T, 1, 1))
    content = endpoint.turn_values(jnp.asarray(value)[None, :, None], seq, rotation)
    out, _ = linear_attention(ones, ones, content, log_decay=jnp.full((1, T, 1), np.log(gamma)))
    got = endpoint.turn_values(out, seq, rotation, sign=-1)[0, :, 0]
    np.testing.assert_allclose(got, np.array(wanted), atol=1e-7)


def test_long_rope_mixed_keeps_the_first_tokens(x64):
    """Ids 0..3 at theta without g, later ids at theta / 4 with g: one complex factor per token."""
    query, key, _ = vectors(T)
    spec = dict(name="long_rope_mixed", original_length=8, start=4)
    place, g = np.arange(T), np.sqrt(1 + np.log(4) / np.log(8))
    rate = np.where(place[:, None] < 4, theta(DIM), theta(DIM) / 4)
    factor = np.where(place < 4, 1.0, g)[:, None] * np.exp(1j * place[:, None] * rate)
    q, k = ((np.asarray(a[0])[..., :4] + 1j * np.asarray(a[0])[..., 4:]) * factor[:, None]
            for a in (query, key))
    score = np.einsum("thp,shp->hts", q, k.conj()).real
    got = weights(spec, query, key, L.sequence(1, T))
    np.testing.assert_allclose(got, softmax(score * DIM**-0.5), atol=1e-7)
