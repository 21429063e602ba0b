"""Kernel methods and their kin: the published layers by loops, their ops, tables, first values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.mixers.kernel_family import powers
from lcx.mixers.performer import orthogonal_features
from lcx.ops.linear.log_linear import log_linear_attention
from lcx.ops.linear.slots import slot_memory
from tests.linear_cases import SEGMENT, B, D, H, T, close, layer, packed, run, started, starts

INDEX = np.asarray(packed().index)


def silu(x):
    return x * sigmoid(x)


def rms(x, gain=1.0, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def case(name, **options):
    """What the layer returns, its parameters, its input, and the projections by name."""
    mixer = layer(name, **options)
    x, found = started(mixer, packed())
    got = run(mixer, found, x, packed())[0]
    p, x = jax.tree.map(np.asarray, found["params"]), np.asarray(x)

    def project(name):
        kernel = p[name]["kernel"]
        out = x @ kernel.reshape(D, -1) + (p[name]["bias"].reshape(-1) if "bias" in p[name] else 0)
        return out.reshape(*x.shape[:2], *kernel.shape[1:])

    return got, p, x, project


def over_pairs(weight, v):
    """sum_j weight(b, h, i, j) v_j over the earlier tokens of a document; the weights too."""
    heads = v.shape[2]
    weights = np.zeros((B, heads, T, T))
    for b, h, i in np.ndindex(B, heads, T):
        for j in range(i + 1):
            if SEGMENT[b, i] == SEGMENT[b, j]:
                weights[b, h, i, j] = weight(b, h, i, j)
    return np.einsum("bhij,bjhv->bihv", weights, v), weights.sum(-1).swapaxes(1, 2)[..., None]


def flat(x):
    return x.reshape(*x.shape[:2], -1)


def out_of(p, x):
    return flat(x) @ p["out"]["kernel"].reshape(-1, D)


# ---- whole layers --------------------------------------------------------------------------------


def test_simple_gla(x64):
    got, p, x, project = case("simple_gla")
    mixed = []
    for name in ("query", "key", "value"):
        y, out = flat(project(name)), np.zeros((B, T, D))
        for b, t in np.ndindex(B, T):
            for back in range(min(4, INDEX[b, t] + 1)):
                out[b, t] += p[f"{name}_conv"]["kernel"][3 - back] * y[b, t - back]
        mixed.append(silu(out).reshape(B, T, H, -1))
    q, k, v = mixed
    gate = np.log(sigmoid(project("rate"))) / 16
    core, _ = over_pairs(lambda b, h, i, j: q[b, i, h] @ k[b, j, h] / 2 * np.exp(
        gate[b, j + 1 : i + 1, h].sum()), v)
    close(got, out_of(p, rms(core, p["norm"]["scale"], 1e-5) * silu(project("gate"))))


def test_lightning(x64):
    got, p, x, project = case("lightning", layer=1, depth=3)
    q, k, v = (silu(project(name)) for name in ("query", "key", "value"))
    rate = [2.0 ** (-2 * (h + 1)) * (1 - 1 / 2.00001 + 1e-5) for h in range(H)]
    core, _ = over_pairs(lambda b, h, i, j: q[b, i, h] @ k[b, j, h] * np.exp(-rate[h] * (i - j)), v)
    normed = rms(flat(core), p["norm"]["scale"]).reshape(core.shape)
    close(got, out_of(p, normed * sigmoid(project("gate"))))


def test_based_and_rebased(x64):
    got, p, x, project = case("based", feature_dim=6)
    q, k, v = (project(name) for name in ("query", "key", "value"))
    product = lambda b, h, i, j: q[b, i, h] @ k[b, j, h] / np.sqrt(6)
    core, total = over_pairs(lambda *at: 1 + product(*at) + product(*at) ** 2 / 2, v)
    close(got, out_of(p, core / (total + 1e-6)))
    got, p, x, project = case("rebased", feature_dim=6)
    norm = lambda y: ((y - y.mean(-1, keepdims=True))
                      / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * p["norm_scale"] + p["norm_bias"])
    q, k, v = norm(project("query")), norm(project("key")), project("value")
    core, total = over_pairs(lambda *at: product(*at) ** 2, v)
    close(got, out_of(p, core / (total + 1e-6)), 1e-8)  # a sum of squares may come near 0


def test_cosformer(x64):
    got, p, x, project = case("cosformer", max_length=30)
    q, k = np.maximum(project("query"), 0), np.maximum(project("key"), 0)
    core, total = over_pairs(lambda b, h, i, j: q[b, i, h] @ k[b, j, h] * np.cos(
        np.pi * (i - j) / 60), project("value"))
    close(got, out_of(p, core / np.maximum(total, 1e-6)))


def test_performer(x64):
    got, p, x, project = case("performer", num_features=10)
    table = orthogonal_features(10, 4, 0)
    exponent = lambda y: (y / 2**0.5) @ table.T - (y**2).sum(-1, keepdims=True) / 4
    q, k = exponent(project("query")), exponent(project("key"))
    q = np.exp(q - q.max(-1, keepdims=True)) + 1e-4
    peak = np.zeros((B, T, H))
    for b, t in np.ndindex(B, T):
        peak[b, t] = k[b, t - INDEX[b, t] : t + 1].max((0, 2))
    # what a key adds to its own feature, 1e-4, fades as the stabiliser rises
    core, total = over_pairs(lambda b, h, i, j: q[b, i, h] @ (
        np.exp(k[b, j, h] - peak[b, j, h]) + 1e-4) * np.exp(peak[b, j, h] - peak[b, i, h]) / 10,
        project("value"))
    close(got, out_of(p, core / (total + 1e-6)))


def test_gsa(x64):
    got, p, x, project = case("gsa", num_slots=3)
    q, k, v = (silu(project(name)) for name in ("query", "key", "value"))
    fade, core = sigmoid(project("gate")) ** 0.125, np.zeros(v.shape)
    for b, h in np.ndindex(B, H):
        for t in range(T):
            if starts(b)[t]:
                keys, values = np.zeros((3, 4)), np.zeros((3, 4))
            f = fade[b, t, h][:, None]
            keys, values = f * keys + (1 - f) * k[b, t, h], f * values + (1 - f) * v[b, t, h]
            core[b, t, h] = softmax(keys @ q[b, t, h]) @ values
    normed = rms(flat(silu(core)), p["norm"]["scale"], 1e-5)
    close(got, out_of(p, normed))


@pytest.mark.parametrize("gated", [False, True])
def test_norm_attention(gated, x64):
    got, p, x, project = case("norm_attention", gated=gated)
    q, k, v = (project(name) for name in ("query", "key", "value"))
    q, k = (np.where(a > 0, a, np.expm1(a)) for a in (q, k))
    core, _ = over_pairs(lambda b, h, i, j: q[b, i, h] @ k[b, j, h], silu(v) if gated else v)
    core = rms(flat(core), p["norm"]["scale"])
    close(got, out_of(p, flat(silu(project("gate"))) * core if gated else core))


@pytest.mark.parametrize("form", ["quadratic", "chunked"])
def test_diag_attention(form, x64):
    got, p, x, project = case("diag_attention", block=5, form=form)
    q, k, v = (project(name) for name in ("query", "key", "value"))
    core, total = over_pairs(lambda b, h, i, j: np.exp(q[b, i, h] @ k[b, j, h] / 2) * (
        INDEX[b, i] // 5 == INDEX[b, j] // 5), v)
    close(got, out_of(p, core / total))


def units(p, x, names):
    """u, v [B,T,1,E], and the scaled and shifted bases."""
    inner = lambda name: silu(x @ p[name]["kernel"])[:, :, None]
    base = inner("base")
    return inner("gate"), inner("value"), [base * p["gain_scale"][n] + p["shift"][n]
                                           for n in range(len(names))]


@pytest.mark.parametrize("count,laplace", [(False, False), (True, True)])
def test_gau(count, laplace, x64):
    got, p, x, _ = case("gau", key_dim=6, count=count, laplace=laplace)
    u, v, (q, k) = units(p, x, ("query", "key"))

    def weight(b, h, i, j):
        z = q[b, i, 0] @ k[b, j, 0] / (INDEX[b, i] + 1 if count else T)
        if laplace:
            return (1 + math.erf((z - 0.5**0.5) / (0.25 / math.pi) ** 0.5 / 2**0.5)) / 2
        return max(z, 0.0) ** 2

    close(got, out_of(p, u * over_pairs(weight, v)[0]))


def test_flash(x64):
    got, p, x, _ = case("flash", key_dim=6, group=4)
    u, v, (q, far_q, k, far_k) = units(p, x, range(4))

    def weight(b, h, i, j):
        if INDEX[b, i] // 4 == INDEX[b, j] // 4:
            return max(q[b, i, 0] @ k[b, j, 0] / 4, 0.0) ** 2
        return far_q[b, i, 0] @ far_k[b, j, 0] / 4

    close(got, out_of(p, u * over_pairs(weight, v)[0]))


def test_linformer_reads_at_the_last_token_what_the_published_layer_reads(x64):
    mixer = layer("linformer", rank=5, max_length=T)
    whole = L.sequence(1, T)
    x, found = started(mixer, whole)
    got = run(mixer, found, x, whole)[0]
    p = jax.tree.map(np.asarray, found["params"])
    q, k, v = (np.einsum("btd,dhk->bthk", x, p[n]["kernel"]) for n in ("query", "key", "value"))
    keys = np.einsum("jr,bjhk->brhk", p["mix_keys"], k)
    values = np.einsum("jr,bjhk->brhk", p["mix_values"], v)
    core = np.einsum("bhr,brhk->bhk", softmax(np.einsum("bhk,brhk->bhr", q[:, -1], keys) / 2),
                     values)
    close(got[:, -1:], out_of(p, core[:, None]))


# ---- ops and tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("length,chunk", [(21, 8), (70, 32), (48, 48)])
def test_slot_memory_in_chunks_is_the_recurrence(length, chunk, x64):
    rng = np.random.default_rng(0)
    q, k, w = (jnp.asarray(rng.normal(size=(2, length, 2, n))) for n in (4, 4, 3))
    gate = -jnp.asarray(rng.exponential(0.5, size=w.shape)).at[:, 5].set(jnp.inf)
    start = jnp.asarray(rng.random((2, length)) < 0.15)
    state = jnp.asarray(rng.normal(size=(2, 2, 4, 3)))

    def run(form, state, *arrays):
        out, state = slot_memory(*arrays, state=state, start=start, form=form, chunk=chunk)
        return jnp.sum(jnp.sin(out)) + jnp.sum(state**2), (out, state)

    grads = jax.value_and_grad(run, argnums=(1, 2, 3, 4, 5), has_aux=True)
    grads = jax.jit(grads, static_argnums=0)
    (_, got), got_slope = grads("chunked", state, q, k, w, gate)
    (_, want), want_slope = grads("recurrent", state, q, k, w, gate)
    jax.tree.map(close, (got, got_slope), (want, want_slope))
    with pytest.raises(ValueError, match="chunked"):
        slot_memory(q, k, w, gate, form="fast")


def test_log_linear_attention_continues_a_stream(x64):
    rng = np.random.default_rng(1)
    q, k, v, level = (jnp.asarray(rng.normal(size=(B, T, 2, n))) for n in (4, 4, 3, 6))
    index, start = jnp.asarray(INDEX), jnp.asarray(np.stack([starts(b) for b in range(B)]))
    want, _ = log_linear_attention(q, k, v, level, index, start=start)
    state, got = jnp.zeros((5, B, 2, 4, 3)), []
    for a, b in ((0, 6), (6, 7), (7, T)):
        out, state = log_linear_attention(*(x[:, a:b] for x in (q, k, v, level, index)),
                                          start=start[:, a:b], state=state, form="recurrent")
        got.append(out)
    close(jnp.concatenate(got, 1), want)


def test_beyond_a_table_is_nan_and_before_it_is_exact(x64):
    whole = L.sequence(1, T)
    for name, options, served in (("linformer", dict(rank=3, max_length=16), 16),
                                  ("log_linear_mamba2", dict(state_dim=4, levels=5), 16)):
        mixer = layer(name, **options)
        x, found = started(mixer, whole)
        got = np.asarray(run(mixer, found, x, whole)[0])
        assert np.isfinite(got[:, :served]).all() and np.isnan(got[:, served:]).all()
        close(got[:, :served], run(mixer, found, x[:, :served], whole[:served])[0])


def test_features_of_powers():
    np.testing.assert_allclose(powers(jnp.array([1.0, 2.0]), (1.0, 1.0, 0.5)),
                               [1, 1, 2, 0.5**0.5, 2.0, 8**0.5], rtol=1e-6)
    q, k = np.random.default_rng(0).normal(size=(2, 7))
    for c in ((1.0, 1.0, 0.5), (0.0, 0.0, 1.0), (0.0, 2.0, 3.0)):
        got = powers(jnp.asarray(q), c) @ powers(jnp.asarray(k), c)
        np.testing.assert_allclose(got, c[0] + c[1] * (q @ k) + c[2] * (q @ k) ** 2, rtol=1e-5)


def test_random_features_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    table = orthogonal_features(4000, 8, 3)
    blocks = table.reshape(-1, 8, 8)
    cross = np.einsum("nik,njk->nij", blocks, blocks) * (1 - np.eye(8))
    assert np.abs(cross).max() < 1e-12
    assert abs((table**2).sum(1).mean() - 8) < 0.2 and abs((table**2).sum(1).var() - 16) < 2
    assert np.abs(table.mean(0)).max() < 0.05 and np.abs(blocks.mean(0)).max() < 0.2
    assert (table == orthogonal_features(4000, 8, 3)).all()
    assert not (table[:8] == orthogonal_features(8, 8, 4)).all()


def test_first_values():
    def first(name, **options):
        mixer = layer(name, **options)
        boxed = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 2, D)), L.sequence(1, 2))
        return jax.tree.map(lambda a: np.asarray(a.value), boxed["params"],
                            is_leaf=lambda a: hasattr(a, "value"))

    gau = first("gau", key_dim=512)
    assert abs(gau["gain_scale"].std() - 0.02) < 0.002 and not gau["shift"].any()
    table = first("linformer", rank=64, max_length=40)["mix_keys"]
    assert np.abs(table).max() <= 0.125 and abs(table.std() - 0.125 / 3**0.5) < 0.004
    kernel = first("norm_attention")["query"]["kernel"]
    assert np.abs(kernel).max() <= (3 / (2 * D)) ** 0.5 and kernel.std() > 0.12
    assert (first("log_linear_mamba2", state_dim=4)["level_rate"] == 1).all()
    assert not first("simple_gla")["rate"]["bias"].any()


@pytest.mark.parametrize("name,options,message", [
    ("simple_gla", dict(num_kv_heads=3), "must divide"),
    ("simple_gla", dict(expand_key=0.3), "keys"),
    ("lightning", dict(layer=2, depth=2), "depth-1"),
    ("norm_attention", dict(feature="relo"), "relu"),
    ("gau", dict(length=0), "1 or more"),
    ("diag_attention", dict(block=4, window=2), "no window"),
    ("based", dict(num_heads=3), "must divide"),
])
def test_bad_options_say_what_to_do(name, options, message):
    with pytest.raises(ConfigError, match=message):
        mixer = layer(name, **options)
        jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 2, D)), L.sequence(1, 2))
