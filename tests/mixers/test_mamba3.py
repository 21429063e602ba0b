"""Mamba-3: the full layer against NumPy loops under the lanes, every way of running it, starts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError, Unimplemented
from tests import mixer_cases as cases
from tests.mixer_cases import B, T, sigmoid, silu, softplus, turn
from tests.mixers.test_lti import falling, gates, rotation

MAMBA3 = dict(name="mamba3", num_heads=2, state_dim=8, num_groups=1, head_dim=3)
ANGLES = np.array([1.1, 0.2, 0.7])


def layer(params, x, **lanes):
    """arXiv:2603.15569 with one input and output per head; lanes as in `recall`."""
    p = jax.tree.map(np.asarray, params)
    project = lambda name: np.einsum("btd,d...->bt...", x, p[name]["kernel"])
    q, k = (np.repeat(normed(project(n), p[f"{n}_norm"]["scale"]), len(p["skip"]), 2)
            + p[f"{n}_bias"] for n in ("query", "key"))
    v = project("value")
    y = recall(p, x, *(a[:, :, None] for a in (q, k, v)), **lanes)[:, :, 0]
    y = (y + p["skip"][:, None] * v) * silu(project("gate"))
    return np.einsum("bthv,hvd->btd", y, p["out"]["kernel"])


def normed(a, gain):
    return a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5) * gain


def recall(p, x, q, k, v, angles=(), fade=None, weight=None, reflect=None, share=None):
    """What the memory answers, in a frame that does not turn: writes are carried to their readers.

    q, k, v [B,T,R,H,*], of R ranks; angles: a scheme's turn of the leading pairs per id; fade
    [T,H]; weight(distance) [H]; reflect: matrix of (t, h); share: the part of the present in the
    trapezoid, if not the layer's own.
    """
    project = lambda name: np.einsum("btd,d...->bt...", x, p[name]["kernel"])
    heads, size = q.shape[3:]
    step, r = softplus(project("step") + p["step_bias"]), project("rate")
    rate = np.maximum(np.where(r >= 0, 1 + r, 1 / (1 - np.minimum(r, 0))), 1e-4)
    share = sigmoid(project("trapezoid")) if share is None else share
    phi = np.zeros((B, T, heads, size // 2))
    own = np.pi * np.tanh(project("angle"))[:, :, None] * step[..., None]
    phi[..., :own.shape[-1]] = own
    ids = np.asarray(cases.packed().ids)[0, :, 0]
    scheme = np.zeros(size // 2)
    scheme[:len(angles)] = angles
    y = np.zeros_like(v)
    for b in range(B):
        for h in range(heads):
            for j in range(T):
                state = k[b, j, :, h].T @ v[b, j, :, h]
                for i in range(j, T):
                    if i > j:
                        if cases.starts()[i]:
                            break
                        state = state if reflect is None else reflect(i, h) @ state
                        both = phi[b, i, h] + scheme * (ids[i] - ids[i - 1])
                        state = turn(-both, size, interleaved=True) @ state
                        state = state * np.exp(-rate[b, i, h] * step[b, i, h]
                                               + (0 if fade is None else fade[i, h]))
                    part = share[b, j, h] * step[b, j, h]
                    if i > j:
                        part = part + (1 - share[b, j + 1, h]) * step[b, j + 1, h]
                    factor = 1.0 if weight is None else weight(ids[i] - ids[j])[h]
                    y[b, i, :, h] += factor * part * q[b, i, :, h] @ state
    return y


def test_mamba3_is_the_published_layer_under_the_lanes(x64):
    mixer, seq = cases.build(MAMBA3), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    check = lambda lanes, **options: np.testing.assert_allclose(
        cases.captured(mixer, found, x, seq, lanes)[0],
        layer(found["params"], np.asarray(x), **options), atol=1e-9)
    for lanes, options in lanes_and_meanings():
        check(lanes, **options)


def lanes_and_meanings():
    """Lanes, and what they are to `recall`."""
    yield None, {}
    gate = gates((2,))
    fades = (L.Separable(jnp.asarray(gate)[None]),)
    for interleaved in (False, True):
        turning = rotation(ANGLES, interleaved=interleaved)
        yield L.Lanes(turning, fades), dict(angles=ANGLES, fade=gate)
    weight = lambda distance: np.exp(np.asarray(falling(1.0, jnp.asarray(distance))) + 0.3)
    static = L.Toeplitz(jnp.asarray(1.0), lifted)
    yield (L.Lanes(turning, (*fades, static)),
           dict(angles=ANGLES, fade=gate, weight=weight))
    rng = np.random.default_rng(4)
    w, strength = rng.normal(size=(T, 2, 8)), 2 * rng.random((T, 2))
    w = w / np.linalg.norm(w, axis=-1, keepdims=True)
    house = L.Householder(jnp.asarray(w)[None], jnp.asarray(strength)[None])
    yield L.Lanes(house), dict(reflect=lambda t, h: np.eye(8) - strength[t, h] * np.outer(
        w[t, h], w[t, h]))


def lifted(params, distance):
    """A bias that counts at distance 0 too."""
    return falling(params, distance) + 0.3


@pytest.mark.parametrize("position,forms", [
    (["rope", "alibi"], ("chunked", "step", "quadratic")), ("path", ("chunked", "step")),
    (dict(name="vo_rope"), ("chunked", "step")), ("selective_rope", ("chunked", "step")),
    (["vo_rope", "kerple"], ("quadratic", "chunked")),
    (["rope", dict(name="t5_bias", num_buckets=8, max_distance=10)], ("quadratic", "step"))],
    ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_mamba3_runs_every_way_alike(x64, position, forms):
    cases.agree(cases.ways(dict(MAMBA3, head_dim=4, chunk=4), position, forms))


def test_mamba3_starts_as_published():
    mixer = mixers.make(dict(name="mamba3", num_heads=64, state_dim=16), position="no_pe",
                        width=64, train_length=8)
    init = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 2, 64)), L.sequence(1, 2))
    p = nn.unbox(init)["params"]
    step = softplus(np.asarray(p["step_bias"]))
    assert 0.001 <= step.min() < 0.002 and 0.05 < step.max() <= 0.1001
    for name in ("query_bias", "key_bias", "skip"):
        np.testing.assert_array_equal(p[name], 1.0)
    assert p["angle"]["kernel"].shape == (64, 4)  # half of the 8 pairs


def test_mamba3_says_what_is_not_there():
    mixer, x = cases.build(MAMBA3, "wall"), cases.inputs()
    with pytest.raises(Unimplemented):
        jax.eval_shape(lambda: mixer.init(jax.random.key(0), x, cases.packed()))
    with pytest.raises(ConfigError, match="pair to turn"):
        cases.build(dict(MAMBA3, state_dim=2)).init(jax.random.key(0), cases.inputs(),
                                                    cases.packed())
