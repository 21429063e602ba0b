"""The linear recurrent unit: the full layer against NumPy loops under every lane, and E13."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from tests import mixer_cases as cases
from tests.mixer_cases import B, T
from tests.mixers.test_lti import falling, gates, rotation

LRU = dict(name="lru", num_heads=2)
ANGLES = np.array([1.1, 0.2])
STEPS = (("no_pe", "chunked"), (["rope", "alibi"], "chunked"), ("xpos", "chunked"),
         (["rope", "t5_bias"], "quadratic"))


def layer(params, x, angles=(), fade=0.0, weight=None):
    """arXiv:2303.06349 with complex numbers; each input on its own, so that a factor may weigh it.

    angles: turn of the leading channels per step of the ids; fade [T,H,2,N] of the two parts.
    """
    p = jax.tree.map(np.asarray, params)
    heads, count = p["nu"].shape
    inward = p["in"]["kernel"][:, :, 0] + 1j * p["in"]["kernel"][:, :, 1]
    u = np.exp(p["gamma"]) * np.einsum("btd,dhn->bthn", x, inward)
    own = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    ids, turn = np.asarray(cases.packed().ids)[0, :, 0], np.zeros(count)
    turn[:len(angles)] = angles
    fade = np.broadcast_to(fade, (T, heads, 2, count))
    h = np.zeros((B, T, heads, count), complex)
    for j in range(T):
        state = u[:, j]
        for i in range(j, T):
            if i > j:
                if cases.starts()[i]:
                    break
                state = own * np.exp(-1j * turn * (ids[i] - ids[i - 1])) * state
                state = np.exp(fade[i, :, 0]) * state.real + 1j * np.exp(
                    fade[i, :, 1]) * state.imag
            factor = np.ones(heads) if weight is None else weight(ids[i] - ids[j])
            h[:, i] += factor[:, None] * state
    outward = p["out"]["kernel"][:, 0] - 1j * p["out"]["kernel"][:, 1]  # [H,N,D]
    return np.einsum("bthn,hnd->btd", h, outward).real + p["skip"] * x


def test_lru_is_the_published_layer_under_every_lane(x64):
    mixer, seq = cases.build(LRU), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    check = lambda lanes, **options: np.testing.assert_allclose(
        cases.captured(mixer, found, x, seq, lanes)[0],
        layer(found["params"], np.asarray(x), **options), atol=1e-9)
    check(None)
    gate = gates((2,))
    fades = (L.Separable(jnp.asarray(gate)[None]),)
    spread = gate[..., None, None]
    for interleaved in (False, True):
        turn = rotation(ANGLES, interleaved=interleaved)
        for lanes in (L.Lanes(turn, fades), L.Lanes(None, fades, value=L.ValueRotation(turn))):
            check(lanes, angles=ANGLES, fade=spread)
        # tied gates of the two turned pairs, numbered as the rotation numbers its channels
        inside = gates((2, 2), 4)
        both = np.repeat(inside, 2, -1) if interleaved else np.concatenate([inside] * 2, -1)
        tied = np.pad(inside, [(0, 0), (0, 0), (0, 6)])[:, :, None]
        check(L.Lanes(L.Diagonal(jnp.asarray(both)[None], turn), fades), angles=ANGLES,
              fade=spread + tied)
    untied = gates((2, 11), 5)  # the last five channels do not fade
    halves = np.pad(untied, [(0, 0), (0, 0), (0, 5)]).reshape(T, 2, 2, 8)
    check(L.Lanes(L.Diagonal(jnp.asarray(untied)[None])), fade=halves)
    weight = lambda distance: np.exp(np.asarray(falling(1.0, jnp.asarray(distance))))
    static = L.Toeplitz(jnp.asarray(1.0), falling)
    check(L.Lanes(turn, (*fades, static)), angles=ANGLES, fade=spread, weight=weight)


@pytest.mark.parametrize("position,form", STEPS, ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_lru_runs_every_way_alike(x64, position, form):
    forms = (form, "step") if form == "chunked" else (form,)
    cases.agree(cases.ways(LRU, position, forms))


def test_lru_starts_as_published():
    mixer = mixers.make(dict(name="lru", radius=(0.5, 0.9), max_phase=1.0), position="no_pe",
                        width=512, train_length=8)
    p = nn.unbox(jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 2, 512)), L.sequence(1, 2)))
    p = p["params"]
    square = np.exp(-2 * np.exp(p["nu"])).ravel()
    assert 0.25 <= square.min() < 0.27 and 0.79 < square.max() <= 0.81
    assert abs(square.mean() - 0.53) < 0.02
    phase = np.exp(p["theta"])
    assert phase.max() < 1.0 and abs(phase.mean() - 0.5) < 0.05
    np.testing.assert_allclose(np.exp(2 * p["gamma"]).ravel(), 1 - square, rtol=1e-4)
    np.testing.assert_allclose(np.std(p["in"]["kernel"]), 1 / np.sqrt(2 * 512), rtol=0.01)
    np.testing.assert_allclose(np.std(p["out"]["kernel"]), 1 / np.sqrt(512), rtol=0.01)
