"""RWKV-4: the op against its definition, the whole layer, golden numbers, extreme keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.ops.scan.wkv import wkv
from tests import mixer_cases as cases
from tests.mixer_cases import B, T, sigmoid

SPEC = dict(name="rwkv4", num_heads=2)
FORMS = ("quadratic", "chunked", "step")


def average(key, value, rate, bonus, fade):
    """The definition, document by document: key, value [B,T,H,K], fade [T,H]."""
    out = np.zeros_like(value)
    for first, end in cases.DOCUMENTS:
        for i in range(first, end):
            log = np.stack([
                key[:, j] + (bonus if i == j else -(i - 1 - j) * rate)
                + fade[j + 1: i + 1].sum(0)[:, None] for j in range(first, i + 1)], 1)
            weights = np.exp(log - log.max(1, keepdims=True))
            out[:, i] = (weights * value[:, first: i + 1]).sum(1) / weights.sum(1)
    return out


def test_the_layer_is_the_published_one_under_a_gate(x64):
    mixer, seq = cases.build(SPEC), cases.packed()
    found, x = cases.variables(mixer, seq), np.asarray(cases.inputs())
    p = jax.tree.map(np.asarray, found["params"])
    before = np.where(cases.starts()[:, None], 0.0, np.roll(x, 1, 1))
    into = lambda name, n: np.einsum("btd,dhk->bthk", p["blend_scale"][n] * x + (
        1 - p["blend_scale"][n]) * before, p[name]["kernel"])
    key, value, gate = into("key", 0), into("value", 1), sigmoid(into("receptance", 2))
    fade = np.where(cases.starts()[:, None], 0.0, -np.random.default_rng(3).random((T, 2)))
    lanes = L.Lanes(bias=(L.Separable(jnp.asarray(fade)[None]),))
    for told, said in ((0 * fade, None), (fade, lanes)):
        out = average(key, value, np.exp(p["decay_bias"]), p["bonus_bias"], told)
        wanted = np.einsum("bthk,hkd->btd", gate * out, p["out"]["kernel"])
        out = jax.jit(mixer.apply)(found, jnp.asarray(x), seq, None, said)[0]
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("position,forms", [
    ("fox", FORMS), (["fox", "t5_bias"], ("quadratic",))], ids=str)
def test_every_way_of_running_agrees(position, forms, x64):
    cases.agree(cases.ways(dict(SPEC, chunk=4), position, forms))


def test_extreme_keys_are_averages_still():
    """Keys of +-1000, decays of e^3 and none: in float32 within the values, gradients finite."""
    rng = np.random.default_rng(0)
    key = jnp.asarray(rng.choice([-1e3, 0, 1e3], (B, 50, 2, 3)), jnp.float32)
    value = jnp.asarray(rng.normal(size=key.shape), jnp.float32)
    rate, bonus = jnp.asarray([[20.0, 1e-4, 1.0]] * 2), jnp.asarray([[50.0, 0, -50]] * 2)
    for form in ("scan", "chunked", "associative"):
        def run(key, value, rate, form=form):
            out = wkv(key, value, rate, bonus, form=form)[0]
            return jnp.sum(out**2), out

        slopes, out = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(key, value, rate)
        assert all(np.isfinite(slope).all() for slope in slopes)
        assert np.abs(out).max() <= np.abs(value).max() * (1 + 1e-5)


def test_golden_starts():
    """Of four channels, the first of two layers: -5, -1.2923, 1.0232, 3."""
    mixer = cases.build(dict(SPEC, num_heads=1, num_layers=2)).clone(width=4)
    init = jax.jit(mixer.init)(jax.random.key(0), cases.inputs()[..., :4], cases.packed())
    params = jax.tree.map(np.asarray, nn.unbox(init)["params"])
    np.testing.assert_allclose(params["decay_bias"][0], [-5, -1.2923, 1.0232, 3], atol=1e-4)
    np.testing.assert_allclose(params["bonus_bias"][0] - np.log(0.3), [0, 0.5, -0.5, 0], atol=1e-6)
    np.testing.assert_allclose(params["blend_scale"][0], [0, 0.25, 0.5, 0.75], atol=1e-6)
    assert not any(params[name]["kernel"].any() for name in ("key", "receptance", "out"))
    kernel = params["value"]["kernel"].reshape(4, 4)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(4), atol=1e-5)
