"""Cells that are published models: kernels, decays and rotations of linear attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.mixers.retention import log_decay as retention_decay
from lcx.positions.alibi import slopes
from tests import mixer_cases as cases
from tests.linear_cases import B, D, H, K, T, close, draw, layer, mix, packed, starts, turn

FREQUENCY = np.array([1.0, 0.3, 0.01])


def increments(rate):
    """A static rate per head as the increments of a scheme: nothing at the start of a document."""
    first = np.stack([starts(b) for b in range(B)])
    return L.Separable(jnp.asarray(np.where(first[..., None], 0.0, rate)))


def core(mixer, method, arrays, lanes=None, **options):
    """A mixer's core alone, on the packed rows."""
    call = jax.jit(lambda *a: mixer.apply({}, *a, packed(), lanes or L.Lanes(), (), None,
                                          method=method, **options)[0])
    return call(*map(jnp.asarray, arrays))


def test_e1_linear_attention_with_rotation_and_alibi_at_retnet_s_rates_is_retention(x64):
    q, k, v = draw(positive=False)
    rotation = L.Rotation(L.split_frequency(FREQUENCY))
    rate = retention_decay(H)
    whole = L.Lanes(rotation, (increments(rate),))
    for form in ("quadratic", "chunked", "step"):
        got = mix(q, k, v, packed(), whole, form)
        close(got, mix(q, k, v, packed(), L.Lanes(rotation), log_decay=jnp.asarray(rate)))


@pytest.mark.parametrize("number,depth", [(0, 1), (3, 8), (7, 8)])
def test_e2_linear_attention_with_alibi_s_slopes_is_lightning(number, depth, x64):
    mixer = layer("lightning", layer=number, depth=depth)
    factor = 1 - number / (depth - 1 + 1e-5) + 1e-5
    np.testing.assert_allclose(mixer.log_decay(), -slopes(H) * factor, rtol=1e-14)
    q, k, v = draw(kv_heads=H, positive=False)
    got = mix(q, k, v, packed(), L.Lanes(bias=(increments(-slopes(H) * factor),)), "quadratic")
    close(got, mix(q, k, v, packed(), log_decay=jnp.asarray(mixer.log_decay()), form="chunked"))


@pytest.mark.parametrize("form", ["quadratic", "chunked", "step"])
def test_e3_linear_attention_under_a_cosine_kernel_is_cosformer(form, x64):
    q, k, v = draw(kv_heads=H)
    q = 1e6 * q  # one adds 1e-6 to the sum of weights, the other takes it as their least value
    lanes = L.Lanes(bias=(L.Toeplitz(jnp.float64(40.0), _log_cosine),))
    mixer = layer("cosformer", form=form, max_length=40)
    method = "_pairs" if form == "quadratic" else "_memories"
    close(core(mixer, method, (q, k, v)), mix(q, k, v, packed(), lanes, normaliser="sum"), 1e-10)


def _log_cosine(params, distance):
    return jnp.log(jnp.cos(jnp.pi * distance / (2 * params)))[..., None] * jnp.ones(H)


@pytest.mark.parametrize("position", ["no_pe", ["rope", "alibi"]])
def test_e15_random_features_approach_the_softmax(position, x64):
    """With the same weights, under a rotation and a bias too; the error falls as m^-1/2."""
    attention = layer("attention", position)
    x = jax.random.normal(jax.random.key(0), (B, T, D), jnp.float64) / 2
    found = jax.jit(attention.init)(jax.random.key(1), x, packed())
    wanted = jax.jit(attention.apply)(found, x, packed())[0]
    errors = []
    for size in (32, 8192):
        mixer = layer("performer", position, num_features=size, inside=True, floor=0.0)
        got = jax.jit(mixer.apply)(found, x, packed())[0]
        errors.append(float(jnp.abs(got - wanted).mean() / jnp.abs(wanted).mean()))
    print(f"[mean errors {errors[0]:.1e}, {errors[1]:.1e} of 1]", end=" ")
    assert errors[1] < 0.03 and errors[1] < errors[0] / 4, errors


@pytest.mark.parametrize("form", ["quadratic", "chunked", "step"])
@pytest.mark.parametrize("name,polynomial", [("based", lambda z: 1 + z + z * z / 2),
                                             ("rebased", lambda z: z * z)])
def test_e28_a_rotation_before_taylor_features_is_a_rotation_inside_the_kernel(
        name, polynomial, form, x64):
    q, k, v = draw(kv_heads=H, positive=False)
    lanes = L.Lanes(L.Rotation(L.split_frequency(FREQUENCY)))
    mixer = layer(name, form=form, feature_dim=K)
    got = core(mixer, "weigh", (q, k, v), lanes, scale=0.5)
    index, want = np.asarray(packed().index), np.zeros(v.shape)
    for b, h, i in np.ndindex(B, H, T):
        seen = [j for j in range(i + 1) if index[b, i] - index[b, j] == i - j]
        z = [q[b, i, h] @ turn(-FREQUENCY * (i - j)) @ k[b, j, h] / 2 for j in seen]
        weights = polynomial(np.array(z))
        assert (weights >= 0).all()  # also in the sum, which a rotation of features would spoil
        want[b, i, h] = weights @ v[b, seen, h] / (weights.sum() + 1e-6)
    close(got, want, 1e-10)


@pytest.mark.parametrize("name", ["based", "rebased"])
def test_a_map_that_is_not_linear_meets_the_scale_after_it(name, x64):
    """PoPE's softplus inside a polynomial of scaled products: one answer in every form."""
    spec = dict(name=name, num_heads=2, feature_dim=4, chunk=4)
    cases.agree(cases.ways(spec, "pope", ("quadratic", "chunked", "step")))


def test_e30_a_content_rotation_of_constant_steps_is_a_rotation(x64):
    q, k, v = draw(positive=False)
    step = np.broadcast_to(FREQUENCY, (B, T, 2, len(FREQUENCY)))
    first = np.stack([starts(b) for b in range(B)])[..., None, None]
    step = jnp.asarray(np.where(first, 0.0, step))
    lanes = L.Lanes(L.ContentRotation(jnp.cumsum(step, 1), step))
    want = mix(q, k, v, packed(), L.Lanes(L.Rotation(L.split_frequency(FREQUENCY))), "quadratic")
    for form in ("quadratic", "chunked", "step"):
        close(mix(q, k, v, packed(), lanes, form), want)


def test_one_level_for_all_is_mamba2(x64):
    """Log-linear attention whose levels weigh alike is the linear attention that it refines."""
    q, k, v = draw(positive=False)
    gate = -np.random.default_rng(4).exponential(0.3, size=(B, T, H))
    mixer = mixers.make(dict(name="log_linear_mamba2", levels=6, state_dim=K, num_groups=2),
                        position="no_pe", width=D, train_length=T, parent=None)
    v = np.repeat(v, 2, 2)
    call = jax.jit(functools.partial(mixer.apply, {}, method="weighed"))
    got = call(*map(jnp.asarray, (q, k, v, np.ones((B, T, H, 6)))), packed(), L.Lanes(), (), None,
               jnp.asarray(gate))[0]
    close(got, mix(q, k, v, packed(), log_decay=jnp.asarray(gate)))
