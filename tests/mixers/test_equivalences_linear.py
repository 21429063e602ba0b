"""Cells of the linear family that are published models, or one another, to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.mixers.vector_family import VectorMixer
from lcx.ops.linear import linear_attention
from lcx.positions import make as scheme
from tests.linear_cases import (
    B,
    D,
    H,
    K,
    T,
    close,
    draw,
    layer,
    mix,
    packed,
    pairs_loop,
    recurrence,
    run,
    started,
    turn,
)

FORMS = ("quadratic", "chunked", "step")
RNG = np.random.default_rng(7)
GATE = -RNG.exponential(0.4, size=(B, T, H))


class Channels(VectorMixer):
    """The vector family's core alone."""

    num_heads: int = H

    def site(self):
        return L.Site(H, 2, K, K, D, T)


def mix_channels(q, k, v, seq, gate, lanes=None, form="auto"):
    core = Channels(position="no_pe", width=D, train_length=T, form=form)
    lanes = L.Lanes() if lanes is None else lanes
    call = jax.jit(lambda *a: core.apply({}, *a[:3], seq, lanes, (), None, log_decay=a[3],
                                         method="mix")[0])
    return call(*map(jnp.asarray, (q, k, v, gate)))


def captured(mixer, found, x, seq, lanes=None):
    """Output of a layer, and what its core got and returned."""
    call = jax.jit(lambda found, x: mixer.apply(found, x, seq, None, lanes,
                                                mutable=["intermediates"]))
    (y, _), seen = call(found, x)
    seen = seen["intermediates"]
    return y, seen["inner"][0], seen["outer"][0]


@pytest.mark.parametrize("form", FORMS)
def test_e4_xpos_is_a_constant_gate_of_each_pair_under_a_rotation(form, x64):
    q, k, v = draw(positive=False)
    site = L.Site(H, 2, K, K, D, T)
    spoken = scheme(dict(name="xpos", interleaved=False, scale=4.0), site, parent=None)
    seq, x = packed(), jnp.zeros((B, T, D))
    lanes = jax.jit(lambda: spoken.init_with_output(
        jax.random.key(0), x, seq, spoken.init_carry(B), method="lanes")[0][0])()
    fade = np.broadcast_to(lanes.transport.increment, (B, T, 2, K))
    assert fade.min() < -0.05 and np.array_equal(fade[..., :3], fade[..., 3:])
    got = mix_channels(q, k, v, seq, fade.repeat(2, 2), L.Lanes(lanes.transport.rotation), form)
    close(got, mix(q, k, v, seq, lanes, form))
    # ... which is the recurrence S = diag(a) R S + k v^T
    frequency = np.asarray(lanes.transport.rotation.frequency, np.float64).sum(0) * 2 * np.pi
    close(got, recurrence(q, k, v, steps=lambda b, h, t: np.exp(fade[b, t, 0])[:, None] * turn(
        -frequency)))


@pytest.mark.parametrize("form", FORMS)
def test_untied_gates_turn_then_fade(form, x64):
    """Transport semantics: the recurrence itself; and a shift of all ids changes nothing."""
    q, k, v = draw(positive=False)
    gate, frequency = -RNG.exponential(0.4, size=(B, T, H, K)), np.array([1.0, 0.3, 0.01])
    lanes = L.Lanes(L.Rotation(L.split_frequency(frequency), jnp.float64(1.3)))
    got = mix_channels(q, k, v, packed(), gate, lanes, form)
    close(got, recurrence(q, k, v, gain=1.3**2, steps=lambda b, h, t: np.exp(
        gate[b, t, h])[:, None] * turn(-frequency)))
    shifted = packed().replace(ids=packed().ids + 1000.0)
    close(mix_channels(q, k, v, shifted, gate, lanes, form), got)


def test_r10_turning_queries_and_keys_under_untied_gates_is_not_relative(x64):
    """What the family does not do: endpoint semantics depend on where a pair stands."""
    q, k, v = draw(positive=False)
    gate, frequency = -RNG.exponential(0.4, size=(B, T, H, K)), np.array([1.0, 0.3, 0.01])

    def endpoint(first):
        turned = lambda a: np.stack([turn(frequency * (t + first)) @ a[:, t, ..., None]
                                     for t in range(T)], 1)[..., 0]
        return mix_channels(turned(q), turned(k), v, packed(), gate)

    assert np.abs(endpoint(0) - endpoint(5)).max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_e5_fox_s_gate_is_simple_gla(form, x64):
    """The scheme's gate and the mixer's own are one object in the linear algebra."""
    q, k, v = draw(positive=False)
    lanes = L.Lanes(bias=(L.Separable(jnp.asarray(GATE)),))
    want = recurrence(q, k, v, gate=GATE)
    close(mix(q, k, v, packed(), lanes, form), want)
    close(mix(q, k, v, packed(), form=form, log_decay=jnp.asarray(GATE)), want)


@pytest.mark.parametrize("form", FORMS)
def test_e8_gates_alike_in_all_channels_make_gla_simple_gla(form, x64):
    q, k, v = draw(positive=False)
    alike = np.broadcast_to(GATE[..., None], (B, T, H, K))
    close(mix_channels(q, k, v, packed(), alike, form=form),
          mix(q, k, v, packed(), form=form, log_decay=jnp.asarray(GATE)))


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_e9_hgrn2_is_gla_whose_key_is_what_the_gate_lets_go(bound, x64):
    mixer = layer("hgrn2", lower_bound=bound, head_dim=K)
    x, found = started(mixer, packed())
    _, inner, outer = captured(mixer, found, x, packed())
    kept = np.exp(inner["log_decay"])
    assert bound < kept.min() and kept.max() < 1
    close(inner["key"], 1 - kept)
    out = np.zeros(outer.shape)
    for b in range(B):
        memory = 0
        for t in range(T):
            if t == 0 or packed().segment[b, t] != packed().segment[b, t - 1]:
                memory = np.zeros((H, K, outer.shape[-1]))
            memory = kept[b, t][..., None] * memory + (
                (1 - kept[b, t])[..., None] * inner["value"][b, t][:, None])
            out[b, t] = np.einsum("hk,hkv->hv", inner["query"][b, t], memory)
    close(outer, out)


def test_e23_rwkv6_has_the_states_of_gla_and_reads_them_before_the_gate(x64):
    mixer = layer("rwkv6", blend_rank=3, decay_rank=4)
    seq = L.sequence(1, T)
    x, found = started(mixer, seq)
    state, states = mixer.init_state(B, T, jnp.float64), []
    for t in range(T):
        states.append(np.asarray(state.core.memory))
        state = run(mixer, found, x[:, t : t + 1], seq[t : t + 1], state)[1]
    _, inner, outer = captured(mixer, found, x, seq)
    for t in (5, T):  # the states of GLA with the same keys, values and gates
        _, gla = linear_attention(*(inner[n][:, :t] for n in ("query", "key", "value")),
                                  log_decay=inner["log_decay"][:, :t])
        close([*states, np.asarray(state.core.memory)][t], gla)
    past = np.einsum("bthk,tbhkv->bthv", inner["query"], np.stack(states))
    close(outer, past + inner["own"][..., None] * inner["value"])  # the bonus of the present


@pytest.mark.parametrize("spec", [
    dict(name="rerope", window=3), dict(name="leaky_rerope", window=4, leak=2.5),
    dict(name="self_extend", window=4, group=2), dict(name="dca", chunk=6, local=2)], ids=str)
def test_e24_rotations_of_two_ranges_in_a_ring_are_the_sum_over_all_pairs(spec, x64):
    mixer, seq = layer("retention", spec, num_heads=2), packed()
    x, found = started(mixer, seq)
    lanes = jax.jit(lambda: scheme(spec, mixer.site(), parent=None).init_with_output(
        jax.random.key(0), x, seq, None, method="lanes")[0][0])()
    _, inner, outer = captured(mixer, found, x, seq, lanes)
    piece, index = lanes.transport, np.asarray(seq.index, float)
    frequency = np.asarray(piece.rotation.frequency, np.float64).sum(0) * 2 * np.pi
    gain = 1.0 if piece.rotation.amplitude is None else float(piece.rotation.amplitude) ** 2
    rate = np.log1p(-(2.0 ** (-5.0 - np.arange(2))))
    out = np.zeros(outer.shape)
    for b in range(B):
        for i in range(T):
            for j in range(i + 1):
                if seq.segment[b, i] != seq.segment[b, j]:
                    continue
                at = index[b, i].reshape(1, 1), index[b, j].reshape(1, 1)
                maps = piece.pieces[int(piece.select(piece.params, *at)[0, 0])]
                turns = [float(m(piece.params, jnp.asarray(a))[0, 0]) for m, a in zip(maps, at)]
                matrix = gain * turn(-frequency * (turns[0] - turns[1]))
                weight = np.einsum("hk,kl,hl->h", inner["query"][b, i], matrix,
                                   inner["key"][b, j])
                out[b, i] += (weight * np.exp(rate * (i - j)))[:, None] * inner["value"][b, j]
    close(outer, out)
    state, outputs = mixer.init_state(B, T, jnp.float64), []
    whole = run(mixer, found, x, seq)[0]
    for a, b in ((0, 1), (1, 8), (8, 10), (10, T)):
        y, state = run(mixer, found, x[:, a:b], seq[a:b], state)
        outputs.append(y)
    close(jnp.concatenate(outputs, 1), whole)
    assert mixer.state_size(64) == mixer.state_size(4096)  # bounded, whatever the length


@pytest.mark.parametrize("name", ["kerple", "t5_bias"])
def test_e25_a_static_bias_by_fft_is_the_sum_over_all_pairs(name, x64):
    q, k, v = draw()
    site = L.Site(H, 2, K, K, D, T)
    spoken = scheme(name, site, parent=None)
    bias = jax.jit(lambda: spoken.init_with_output(
        jax.random.key(0), jnp.zeros((B, T, D)), packed(), None, method="lanes")[0][0])().bias
    lanes = L.Lanes(bias=tuple(L.Toeplitz(b.params, b.kernel) for b in bias))
    table = np.asarray(sum(b.kernel(b.params, jnp.arange(T, dtype=float)) for b in bias))
    identity = np.eye(K)
    want = pairs_loop(q, k, v, lambda b, h, i, j: (identity, np.exp(table[i - j, h])), "sum")
    close(mix(q, k, v, packed(), lanes, "chunked", normaliser="sum"), want)
