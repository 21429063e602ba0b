"""RWKV-7 and Kimi Delta Attention as published, token by token on a packed row; initial values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError
from lcx.mixers.rwkv7 import FirstValue
from lcx.train.decay import decayed
from tests import mixer_cases as cases
from tests.mixer_cases import B, D, T, conv, sigmoid, silu, softplus

H, K = 2, D // 2


def layer(found):
    return jax.tree.map(np.asarray, found["params"])


def heads(a):
    return a.reshape(B, T, H, -1)


@pytest.mark.parametrize("first", [False, True])
def test_rwkv7_is_the_published_time_mixing(first, x64):
    """Also where the values of a layer below are given."""
    mixer, seq = cases.build(dict(name="rwkv7", num_heads=H, ranks=(3, 4, 5, 6))), cases.packed()
    x, v_first = cases.inputs(), cases.inputs(seed=5)
    relay = FirstValue(v_first, jnp.asarray(True)) if first else None
    run = lambda found: mixer.apply(found, x, seq, None, None, relay, method="relayed")
    found = cases.variables(mixer, seq, relay)
    p, plain = layer(found), np.asarray(x)
    before = np.zeros_like(plain)
    for t in range(1, T):
        before[:, t] = 0.0 if cases.starts()[t] else plain[:, t - 1]
    r, w, k, v, a, g = (plain + (before - plain) * mu for mu in p["blend_scale"])
    into = lambda name, x: x @ p[name]["kernel"].reshape(x.shape[-1], -1)
    vector, shifted = lambda name: p[name].reshape(-1), v
    r, k, v = into("query", r), into("key", k), into("value", v)
    w = sigmoid(vector("decay_bias") + into("decay", np.tanh(into("decay_in", w))))
    w = np.exp(-w / np.e**0.5)
    a = sigmoid(vector("rate_bias") + into("rate", into("rate_in", a)))
    if first:
        share = sigmoid(vector("share_bias") + into("share", into("share_in", shifted)))
        v = v + share * (np.asarray(v_first) - v)
    g = into("gate", sigmoid(into("gate_in", g)))
    kappa = heads(k * vector("removal_scale"))
    kappa = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True)
    r, w, k, v, a = map(heads, (r, w, k + k * (a - 1) * vector("key_scale"), v, a))
    out = np.zeros((B, T, H, K))
    for b in range(B):
        for h in range(H):
            for t in range(T):
                if cases.starts()[t]:
                    s = np.zeros((K, K))
                at = (b, t, h)
                s = (np.diag(w[at]) - np.outer(kappa[at] * a[at], kappa[at])) @ s
                s = s + np.outer(k[at], v[at])
                y = r[at] @ s
                y = (y - y.mean()) / np.sqrt(y.var() + 64e-5) * p["norm_scale"][h]
                bonus = (r[at] * k[at] * p["bonus_scale"][h]).sum()
                out[at] = y + p["norm_bias"][h] + bonus * v[at]
    wanted = (out.reshape(B, T, D) * g) @ p["out"]["kernel"].reshape(D, D)
    np.testing.assert_allclose(run(found)[0], wanted, atol=1e-11)


@pytest.mark.parametrize("bound", [None, -5.0])
def test_kda_is_the_published_layer(bound, x64):
    mixer = cases.build(dict(name="kda", num_heads=H, lower_bound=bound))
    seq = cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    p, plain = layer(found), np.asarray(x)
    flat = (plain @ p["qkv"]["kernel"].reshape(D, -1)).reshape(B, T, -1)
    q, k, v = np.split(heads(silu(conv(flat, p["conv"]["kernel"]))), 3, -1)
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    low = lambda name: heads(plain @ p[f"{name}_in"]["kernel"] @ p[name]["kernel"].reshape(K, -1))
    beta = sigmoid(plain @ p["beta"]["kernel"])
    rate, scale = low("rate") + p["dt_bias"], np.exp(p["a_log"])[:, None]
    log = -scale * softplus(rate) if bound is None else bound * sigmoid(scale * rate)
    out = np.zeros((B, T, H, K))
    for b in range(B):
        for h in range(H):
            for t in range(T):
                if cases.starts()[t]:
                    s = np.zeros((K, K))
                at = (b, t, h)
                s = np.exp(log[at])[:, None] * s
                s = s + beta[at] * np.outer(k[at], v[at] - k[at] @ s)
                y = q[at] @ s / np.sqrt(K)
                y = y / np.sqrt((y * y).mean() + 1e-5) * p["norm"]["scale"]
                out[at] = y * sigmoid(low("gate")[at])
    wanted = out.reshape(B, T, D) @ p["out"]["kernel"].reshape(D, D)
    np.testing.assert_allclose(mixer.apply(found, x, seq)[0], wanted, atol=1e-11)


def initial(spec, width=64):
    mixer = mixers.make(spec, position="no_pe", width=width, train_length=8)
    seq, x = L.sequence(1, 2), jnp.zeros((1, 2, width))
    return drawn(lambda: mixer.init(jax.random.key(0), x, seq))


def drawn(init):
    """First values as one program; op by op they take ten times as long."""
    return jax.tree.map(np.asarray, jax.jit(lambda: nn.unbox(init()["params"]))())


def test_initial_values_of_rwkv7():
    """The tables of the published code: layer 1 of 3, 64 channels in heads of 16."""
    p = initial(dict(name="rwkv7", num_heads=4, layer=1, num_layers=3))
    flat = {name: p[name].ravel() for name in p if name.endswith(("_bias", "_scale"))}
    np.testing.assert_allclose(p["blend_scale"][:, 0], 1)
    np.testing.assert_allclose(p["blend_scale"][1, 32], 1 - 0.5 ** (0.9 * 2 / 3), rtol=1e-6)
    # n = 21: zigzag (5 - 7.5) / 7.5, squared with its sign
    zigzag, ramp = -(1 / 3) ** 2, 21 / 63
    np.testing.assert_allclose(
        flat["decay_bias"][21], -6 + 6 * ramp ** (1 + 0.5**0.3) + 0.5 + 2.5 * zigzag, rtol=1e-5)
    np.testing.assert_allclose(flat["rate_bias"][21], -0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5),
                               rtol=1e-5)
    np.testing.assert_allclose(flat["removal_scale"][[0, 63]], [0.76, 0.66], rtol=1e-6)
    assert (flat["key_scale"] == np.float32(1.02)).all()
    assert (flat["bonus_scale"] == np.float32(-0.04)).all()
    np.testing.assert_allclose(flat["norm_scale"], (2 / 3) ** 0.7, rtol=1e-6)
    mixer, x = cases.build("rwkv7"), jnp.zeros((1, 2, D))
    boxed = jax.eval_shape(lambda: mixer.init(jax.random.key(0), x, L.sequence(1, 2)))
    faded = decayed(boxed["params"])
    assert faded["query"]["kernel"] and not any(faded[name] for name in flat)
    assert not p["out"]["kernel"].any() and not p["decay_in"]["kernel"].any()
    seq = L.sequence(1, 2)
    relay = mixer.empty_relay(x)
    p2 = drawn(lambda: mixer.init(jax.random.key(0), x, seq, relay=relay, method="relayed"))
    np.testing.assert_allclose(np.ravel(p2["share_bias"])[[0, D - 1]], [0.93, 0.53], rtol=1e-6)
    assert not p2["share_in"]["kernel"].any() and p2["share"]["kernel"].shape == (32, 4, 4)
    wide = p["decay"]["kernel"].reshape(-1, 64)  # rank 32: max(32, 2.5 sqrt(64) to 32s)
    np.testing.assert_allclose(wide @ wide.T, 0.01 * np.eye(32), atol=1e-6)
    for name, bound in (("query", 0.5), ("key", 0.05)):
        assert 0.9 * bound / 8 < np.abs(p[name]["kernel"]).max() <= bound / 8


def test_initial_values_of_the_gates():
    p = initial(dict(name="kda", num_heads=256, head_dim=2))
    rate, step = np.exp(p["a_log"]), np.asarray(nn.softplus(p["dt_bias"]))
    assert 1 <= rate.min() < 1.3 and 15.5 < rate.max() < 16
    assert 0.00099 < step.min() < 0.0012 and 0.09 < step.max() < 0.101
    assert not initial(dict(name="kda", lower_bound=-5.0))["a_log"].any()
    p = initial(dict(name="comba", correction=0.02))
    assert (p["damping"] == 1).all() and (p["correction"] == np.float32(0.02)).all()


def test_heads_must_divide_the_width():
    for name in ("delta_net", "rwkv7"):
        with pytest.raises(ConfigError, match="num_heads=3 must divide width=16"):
            cases.build(dict(name=name, num_heads=3)).site()
