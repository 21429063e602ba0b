"""Linear attention, retention and Mamba-2: the published layers, streams, gradients, inits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.mixers.retention import log_decay as retention_decay
from tests.linear_cases import (
    SEGMENT,
    B,
    D,
    H,
    K,
    T,
    close,
    layer,
    mix,
    packed,
    run,
    started,
    starts,
    turn,
)


def test_the_ssd_core_is_linear_attention_under_a_forget_gate(x64):
    """Mamba-2's own gate and FoX's lane are one thing in the linear algebra."""
    mixer = layer("mamba2", state_dim=K)
    x, found = started(mixer, packed())
    seen = jax.jit(lambda f, x, s: mixer.apply(f, x, s, mutable=["intermediates"])[1])(
        found, x, packed())["intermediates"]
    inner, outer = seen["inner"][0], seen["outer"][0]
    lanes = L.Lanes(bias=(L.Separable(inner["log_decay"]),))
    close(mix(inner["query"], inner["key"], inner["value"], packed(), lanes, "quadratic"), outer)


def silu(x):
    return x / (1 + np.exp(-x))


def numpy(found):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), found["params"])


def test_retention_is_retnet(x64):
    """The layer under RetNet's ladder is the state form (exactly) and the published parallel form.

    The parallel form divides rows by their decay sums and by clamped absolute weight sums; the
    norm of each head removes both, up to its eps.
    """
    mixer, seq = layer("retention", num_heads=2), L.sequence(1, T)
    x, found = started(mixer, seq)
    x, frequency = 5 * x, 10000.0 ** -np.linspace(0, 1, 4)
    lanes = L.Lanes(L.Rotation(L.split_frequency(frequency)))
    (got, _), seen = jax.jit(lambda f, x: mixer.apply(f, x, seq, None, lanes,
                                                      mutable=["intermediates"]))(found, x)
    p, x = numpy(found), np.asarray(x)
    gamma = 1 - 2.0 ** (-5 - np.arange(2))
    q, k, v, g = (np.einsum("btd,dhk->bthk", x, p[n]["kernel"])
                  for n in ("query", "key", "value", "gate"))
    k = k / np.sqrt(8)
    state_form, parallel = np.zeros_like(v), np.zeros_like(v)
    i, j = np.arange(T)[:, None], np.arange(T)[None]
    for b in range(B):
        for h in range(2):
            memory = np.zeros((8, 16))
            for t in range(T):
                memory = gamma[h] * turn(-frequency) @ memory + np.outer(k[b, t, h], v[b, t, h])
                state_form[b, t, h] = q[b, t, h] @ memory
            turned = lambda a: np.stack([turn(frequency * t) @ row for t, row in enumerate(a)])
            decay = np.where(i >= j, gamma[h] ** np.maximum(i - j, 0), 0.0)
            decay /= np.sqrt(decay.sum(1, keepdims=True))
            weights = turned(q[b, :, h]) @ turned(k[b, :, h]).T * decay
            weights /= np.clip(np.abs(weights).sum(1, keepdims=True), 1, 5e4)
            parallel[b, :, h] = weights @ v[b, :, h]
    close(seen["intermediates"]["outer"][0], state_form)  # the norm would hide a factor
    for core, eps, tolerance in ((state_form, 1e-6, 1e-11), (parallel, 0.0, 1e-4)):
        normed = core / np.sqrt((core**2).mean(-1, keepdims=True) + eps)
        close(got, np.einsum("bthv,hvd->btd", normed * silu(g), p["out"]["kernel"]), tolerance)


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_is_the_published_layer(groups, x64):
    """Projections, one convolution over x|B|C, the recurrence, the skip, the gated norm."""
    mixer = layer("mamba2", state_dim=K, num_groups=groups)
    x, found = started(mixer, packed())
    got = run(mixer, found, x, packed())[0]
    p, x = numpy(found), np.asarray(x)
    width = 2 * D
    z, dt = (x @ p[n]["kernel"].reshape(D, -1) for n in ("gate", "step"))
    names = ("value", "key", "query")
    xbc = np.concatenate([x @ p[n]["kernel"].reshape(D, -1) for n in names], -1)
    kernel = np.concatenate([p[f"{n}_conv"]["kernel"] for n in names], -1)
    bias = np.concatenate([p[f"{n}_conv"]["bias"] for n in names], -1)
    y = np.zeros((B, T, width))
    a = -np.exp(p["log_rate"])
    for b in range(B):
        for t in range(T):
            begins = starts(b)[t]
            window = [xbc[b, s] * (s >= 0 and SEGMENT[b, max(s, 0)] == SEGMENT[b, t])
                      for s in range(t - 3, t + 1)]
            u = silu((np.stack(window) * kernel).sum(0) + bias)
            value = u[:width].reshape(H, -1)
            key, query = u[width:].reshape(2, groups, K).repeat(H // groups, 1)
            if begins:
                memory = np.zeros((H, value.shape[1], K))
            step = np.log1p(np.exp(dt[b, t] + p["step_bias"]))
            memory = (np.exp(step * a)[:, None, None] * memory
                      + step[:, None, None] * value[..., None] * key[:, None])
            out = np.einsum("hpn,hn->hp", memory, query) + p["skip"][:, None] * value
            gated = (out.reshape(-1) * silu(z[b, t])).reshape(groups, -1)
            gated = gated / np.sqrt((gated**2).mean(-1, keepdims=True) + 1e-5)
            y[b, t] = gated.reshape(-1) * p["norm_scale"].reshape(-1)
    close(got, y @ p["out"]["kernel"].reshape(-1, D))


def test_linear_attention_is_the_published_layer(x64):
    mixer = layer("linear_attention", num_kv_heads=2)
    x, found = started(mixer, packed())
    got = run(mixer, found, x, packed())[0]
    p, x = numpy(found), np.asarray(x)
    q, k, v = (np.einsum("btd,dhk->bthk", x, p[n]["kernel"]) for n in ("query", "key", "value"))
    q, k = (np.where(a > 0, a + 1, np.exp(a)) for a in (q, k))
    out = np.zeros_like(q)
    for b in range(B):
        for h in range(H):
            weights = np.tril(q[b, :, h] @ k[b, :, h // 2].T)
            weights = weights * (SEGMENT[b][:, None] == SEGMENT[b][None])
            out[b, :, h] = weights @ v[b, :, h // 2] / (weights.sum(1, keepdims=True) + 1e-6)
    close(got, np.einsum("bthk,hkd->btd", out, p["out"]["kernel"]))


LINEAR, RETENTION = ("linear_attention", {}), ("retention", {})
MAMBA2 = ("mamba2", dict(state_dim=6, num_groups=2))


@pytest.mark.parametrize("form,name,options", [
    ("chunked", *LINEAR), ("quadratic", *RETENTION), ("chunked", *MAMBA2), ("quadratic", *MAMBA2)])
@pytest.mark.full  # the law suite runs every mixer so
def test_uneven_pieces_equal_the_whole_and_the_documents_alone(form, name, options, x64):
    mixer = layer(name, "rope", form, **options)
    x, found = started(mixer, packed())
    whole = run(mixer, found, x, packed())[0]
    state, outputs = mixer.init_state(B, T, jnp.float64), []
    for a, b in ((0, 1), (1, 8), (8, 10), (10, T)):  # the second document is cut off on both sides
        y, after = run(mixer, found, x[:, a:b], packed()[a:b], state)
        assert jax.tree.map(lambda s: (s.shape, s.dtype), after) == jax.tree.map(
            lambda s: (s.shape, s.dtype), state)
        state = after
        outputs.append(y)
    close(jnp.concatenate(outputs, 1), whole)
    for row, a, b in ((0, 8, 9), (0, 9, T), (1, 13, T)):
        alone = run(mixer, found, x[row : row + 1, a:b], L.sequence(1, b - a))[0]
        close(alone, whole[row : row + 1, a:b])


@pytest.mark.parametrize("name,options", [LINEAR, MAMBA2])
def test_gradients_of_the_forms_agree(name, options, x64):
    mixer = layer(name, "rope", **options)
    x, found = started(mixer, packed())
    params, numbers = found["params"], {"numbers": found["numbers"]}

    def loss(params, x, form):
        y = mixer.clone(form=form).apply({"params": params, **numbers}, x, packed())[0]
        return jnp.sum(jnp.sin(3 * y))

    want = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(params, x, "quadratic")
    got = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(params, x, "chunked")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want)):
        close(a, b, 1e-10)
        assert np.abs(b).max() > 1e-6, f"{jax.tree_util.keystr(path)} is dead"


@pytest.mark.parametrize("name,options", [LINEAR, MAMBA2])
def test_bfloat16_keeps_a_wide_memory(name, options):
    mixer, seq = layer(name, "rope", **options), L.sequence(1, T)
    x, found = started(mixer, seq, jnp.float32, spread=0.0)
    y, state = run(mixer, found, x.astype(jnp.bfloat16), seq, mixer.init_state(B, T, jnp.bfloat16))
    core = getattr(state, "core", state)
    assert y.dtype == jnp.bfloat16 and core.memory.dtype == jnp.float32
    close(np.asarray(y, np.float32), run(mixer, found, x, seq)[0], 0.05)


def test_a_memory_has_a_fixed_size_and_a_cache_grows():
    mixer = layer("linear_attention")
    fixed = H * (D // H) * (D // H + 1)  # memory, and the sum of keys of the normaliser
    assert mixer.state_size(8) == mixer.state_size(4096) == fixed
    assert layer("linear_attention", "rope", "quadratic").state_size(4096) > 4096 * 2 * D


def test_initial_values_are_the_published_ones():
    assert np.allclose(np.exp(retention_decay(8))[[0, 7]], [0.96875, 0.99975586], atol=1e-8)
    seq = L.sequence(1, T)
    _, found = started(layer("retention"), seq, jnp.float32, spread=0.0)
    kernels = {name: np.asarray(leaf["kernel"]) for name, leaf in found["params"].items()}
    for name, gain, total in (("query", 2**-2.5, 32), ("value", 2**-2.5, 48), ("out", 0.5, 48)):
        bound = gain * np.sqrt(6 / total)
        assert 0.9 * bound < np.abs(kernels[name]).max() <= bound, name
    scaled = layer("retention").clone(output_scale=0.1)
    _, small = started(scaled, seq, jnp.float32, spread=0.0)
    assert np.allclose(small["params"]["out"]["kernel"], 0.1 * kernels["out"])
    many = layer("mamba2", num_heads=512, head_dim=1)
    _, found = started(many, seq, jnp.float32, spread=0.0)
    rate, step = np.exp(found["params"]["log_rate"]), nn.softplus(found["params"]["step_bias"])
    assert 1 <= rate.min() < 1.2 and 15.8 < rate.max() < 16.001
    assert 0.00099 < step.min() < 0.00104 and 0.097 < step.max() < 0.10001
    assert (np.asarray(found["params"]["skip"]) == 1).all()
