"""The linear mixers against NumPy loops in float64, their published layers and their limits."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError, Refusal, Unimplemented
from lcx.mixers.linear_family import LinearMixer
from lcx.mixers.retention import log_decay as retention_decay

B, T, H, K, V, D = 2, 21, 4, 6, 3, 16
SEGMENT = np.array([[1] * 8 + [2] * 1 + [3] * 12, [1] * 13 + [2] * 8])


class Core(LinearMixer):
    """The family's core alone: `mix` is called with any lanes."""

    kv_heads: int = H

    def site(self):
        return L.Site(H, self.kv_heads, K, K, D, T)


def mix(q, k, v, seq, lanes=None, form="auto", **options):
    core = Core(position="no_pe", width=D, train_length=T, form=form, kv_heads=k.shape[2])
    lanes = L.Lanes() if lanes is None else lanes
    call = jax.jit(lambda *a: core.apply({}, *a, lanes, (), None, **options, method="mix")[0])
    return call(*map(jnp.asarray, (q, k, v)), seq)


def draw(seed=0, kv_heads=2, positive=True):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(B, T, H, K)), rng.normal(size=(B, T, kv_heads, K))
    v = rng.normal(size=(B, T, kv_heads, V))
    return (np.abs(q), np.abs(k), v) if positive else (q, k, v)


def packed():
    return L.sequence(B, T, segment=SEGMENT)


def starts(b):
    return np.r_[True, SEGMENT[b, 1:] != SEGMENT[b, :-1]]


def turn(angles):
    """The matrix that turns channel pairs (m, m+P) by `angles`."""
    c, s = np.diag(np.cos(angles)), np.diag(np.sin(angles))
    return np.block([[c, -s], [s, c]])


def recurrence(q, k, v, *, steps=None, gate=None, normaliser=None, gain=1.0):
    """o_t = gain q_t^T S_t with S_t = exp(gate_t) M_t S_{t-1} + k_t v_t^T, on the packed rows.

    steps(b, h, t) -> M_t; the denominator knows no M and no gain.
    """
    out = np.zeros((B, T, H, V))
    for b in range(B):
        for h in range(H):
            memory, total = np.zeros((K, V)), np.zeros(K)
            n = h * k.shape[2] // H
            for t in range(T):
                if starts(b)[t]:
                    memory, total = np.zeros((K, V)), np.zeros(K)
                decay = 1.0 if gate is None else np.exp(gate[b, t, h])
                matrix = np.eye(K) if steps is None else steps(b, h, t)
                memory = decay * matrix @ memory + np.outer(k[b, t, n], v[b, t, n])
                total = decay * total + k[b, t, n]
                out[b, t, h] = gain * q[b, t, h] @ memory
                if normaliser:
                    out[b, t, h] /= q[b, t, h] @ total + 1e-6
    return out


def pairs_loop(q, k, v, weight, normaliser=None):
    """o_i = sum_j <q_i, M_ij k_j> f_ij v_j on the packed rows; weight(b, h, i, j) -> (M, f)."""
    out = np.zeros((B, T, H, V))
    for b in range(B):
        for h in range(H):
            n = h * k.shape[2] // H
            for i in range(T):
                total = 0.0
                for j in range(i + 1):
                    if SEGMENT[b, i] == SEGMENT[b, j]:
                        matrix, factor = weight(b, h, i, j)
                        out[b, i, h] += (q[b, i, h] @ matrix @ k[b, j, n]) * factor * v[b, j, n]
                        total += q[b, i, h] @ k[b, j, n] * factor
                if normaliser:
                    out[b, i, h] /= total + 1e-6
    return out


def close(got, want, tolerance=1e-11):
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


FORMS = ("quadratic", "chunked", "step")
FREQUENCY = np.array([1.0, 0.3, 0.01])


@pytest.mark.parametrize("normaliser", ["sum", None])
@pytest.mark.parametrize("kind", ["plain", "rotation", "householder", "separable", "native"])
def test_every_form_is_the_recurrence(kind, normaliser, x64):
    q, k, v = draw()
    rng = np.random.default_rng(1)
    gates = -rng.exponential(0.4, size=(2, B, T, H))
    lanes, options, loop = L.Lanes(), {}, {}
    if kind == "rotation":
        lanes = L.Lanes(L.Rotation(L.split_frequency(FREQUENCY), jnp.float64(1.3)))
        loop = dict(steps=lambda b, h, t: turn(-FREQUENCY), gain=1.3**2)
    if kind == "householder":
        w = rng.normal(size=(B, T, 2, K))
        w /= np.linalg.norm(w, axis=-1, keepdims=True)
        beta = rng.uniform(0, 2, size=(B, T, 2))
        lanes = L.Lanes(L.Householder(jnp.asarray(w), jnp.asarray(beta)))
        loop = dict(steps=lambda b, h, t: np.eye(K) - beta[b, t, h // 2] * np.outer(
            w[b, t, h // 2], w[b, t, h // 2]))
    if kind in ("separable", "native"):
        lanes = L.Lanes(bias=(L.Separable(jnp.asarray(gates[0])),
                              L.Separable(jnp.full((1, 1, H), -0.1))))
        loop = dict(gate=gates[0] - 0.1)
    if kind == "native":  # adds to what the scheme's lanes say
        options, loop = dict(log_decay=jnp.asarray(gates[1])), dict(gate=gates.sum(0) - 0.1)
    want = recurrence(q, k, v, normaliser=normaliser, **loop)
    for form in FORMS:
        got = mix(q, k, v, packed(), lanes, form, normaliser=normaliser, **options)
        assert got.dtype == jnp.float64
        close(got, want)


def pair_lane(kind):
    """Lanes of a kind without a state of its own, and its weight of a pair."""
    index = np.asarray(packed().index)
    slopes = np.linspace(0.1, 0.9, H)
    table = np.random.default_rng(3).normal(size=(5, H))
    identity = np.eye(K)
    if kind == "toeplitz":
        lanes = L.Lanes(bias=(L.Toeplitz(jnp.asarray(slopes), _log_distance),))
        return lanes, lambda b, h, i, j: (identity, np.log1p(i - j) * -slopes[h])
    if kind == "constant":
        lanes = L.Lanes(bias=(L.EventuallyConstant(jnp.asarray(table), _bucket, window=4),))
        return lanes, lambda b, h, i, j: (identity, table[min(i - j, 4), h])
    if kind == "pairwise":
        q, k, _ = draw()
        lanes = L.Lanes(bias=(L.Pairwise(jnp.float64(0.1), _half_product),))
        return lanes, lambda b, h, i, j: (identity, 0.1 * q[b, i, h] @ k[b, j, h // 2])
    rotation = L.Rotation(L.split_frequency(FREQUENCY))
    lanes = L.Lanes(L.Piecewise(rotation, jnp.float64(3), _far, (
        (_same, _same), (_capped, _zero))))
    apart = lambda b, i, j: i - j if i - j < 3 else min(index[b, i], 3)
    return lanes, lambda b, h, i, j: (turn(-FREQUENCY * apart(b, i, j)), 0.0)


def _log_distance(params, distance):
    return -jnp.log1p(jnp.maximum(distance, 0))[..., None] * params


def _bucket(params, distance):
    return params[jnp.clip(distance, 0, 4).astype(int)]


def _half_product(params, tile):
    return params * jnp.einsum("bthk,bshk->bhts", tile.query, tile.key)


def _far(params, query_ids, key_ids):
    return (query_ids - key_ids >= params).astype(int)


def _same(params, ids):
    return ids


def _capped(params, ids):
    return jnp.minimum(ids, params)


def _zero(params, ids):
    return 0 * ids


@pytest.mark.parametrize("kind", ["toeplitz", "constant", "pairwise", "piecewise"])
@pytest.mark.parametrize("chunks", [False, True])
def test_pair_lanes_are_factors_of_the_weights(kind, chunks, x64, monkeypatch):
    if chunks:  # 21 queries in chunks of 8: nothing of size [T,S] is held
        monkeypatch.setattr("lcx.ops.linear.quadratic.CHUNK", 8)
        monkeypatch.setattr("lcx.ops.linear.quadratic.SMALL", 0)
    q, k, v = draw()
    lanes, term = pair_lane(kind)
    gate = -np.random.default_rng(4).exponential(0.2, size=(B, T, H))

    def weight(b, h, i, j):
        matrix, bias = term(b, h, i, j)
        return matrix, np.exp(bias + gate[b, j + 1 : i + 1, h].sum())

    got = mix(q, k, v, packed(), lanes, log_decay=jnp.asarray(gate), normaliser="sum")
    close(got, pairs_loop(q, k, v, weight, "sum"))
    got = mix(q, k, v, packed(), lanes)
    close(got, pairs_loop(q, k, v, lambda *p: (term(*p)[0], np.exp(term(*p)[1]))))


def test_chunks_of_queries_carry_the_slot_of_a_path(x64, monkeypatch):
    q, k, v = draw()
    w = np.random.default_rng(5).normal(size=(B, T, 2, K))
    w /= np.linalg.norm(w, axis=-1, keepdims=True)
    lanes = L.Lanes(L.Householder(jnp.asarray(w), jnp.full((B, T, 2), 1.2)))
    want = mix(q, k, v, packed(), lanes, "quadratic")
    monkeypatch.setattr("lcx.ops.linear.quadratic.CHUNK", 8)
    monkeypatch.setattr("lcx.ops.linear.quadratic.SMALL", 0)
    close(mix(q, k, v, packed(), lanes, "quadratic"), want, 1e-13)


def test_a_far_future_bias_and_a_closed_gate_stay_finite():
    """Nothing overflows where a pair is masked; a gate of -inf forgets, and has a zero gradient."""
    q, k, v = map(jnp.float32, draw())
    gate = jnp.zeros((B, T, H)).at[:, 5].set(-jnp.inf)
    lanes = L.Lanes(bias=(L.Toeplitz(jnp.float32(1e4), _steep),))
    core = Core(position="no_pe", width=D, train_length=T, kv_heads=2)

    @functools.partial(jax.jit, static_argnums=2)
    @jax.value_and_grad
    def total(q, lanes, form):
        return jnp.sum(core.clone(form=form).apply({}, q, k, v, L.sequence(1, T), lanes, (), None,
                                                   log_decay=gate, method="mix")[0])

    for case in ((lanes, "auto"), (L.Lanes(), "quadratic"), (L.Lanes(), "chunked")):
        value, slope = total(q, *case)
        assert np.isfinite(value) and np.isfinite(slope).all()
    got = mix(q, k, v, L.sequence(1, T), log_decay=gate, form="quadratic")
    close(got[:, 5:], mix(q[:, 5:], k[:, 5:], v[:, 5:], L.sequence(1, T - 5)), 1e-5)


def _steep(params, distance):
    return -params * distance[..., None] * jnp.ones(H)


# ---- equivalences with published models ----------------------------------------------------------


def test_the_path_of_the_keys_is_the_delta_rule(x64):
    """Linear attention under PaTH with w = k that writes beta k is DeltaNet (arXiv:2406.06484)."""
    q, k, v = draw(positive=False)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta = np.random.default_rng(6).uniform(0, 2, size=(B, T, 2))
    lanes = L.Lanes(L.Householder(jnp.asarray(k), jnp.asarray(beta)))
    want = np.zeros((B, T, H, V))
    for b in range(B):
        for h in range(H):
            memory = np.zeros((K, V))
            for t in range(T):
                if starts(b)[t]:
                    memory = np.zeros((K, V))
                key, step = k[b, t, h // 2], beta[b, t, h // 2]
                memory = memory + step * np.outer(key, v[b, t, h // 2] - memory.T @ key)
                want[b, t, h] = q[b, t, h] @ memory
    for form in FORMS:
        close(mix(q, beta[..., None] * k, v, packed(), lanes, form), want)


def test_a_cosine_kernel_is_cosformer(x64):
    """ReLU features under the kernel cos(pi d / 2M) are cosFormer (arXiv:2202.08791)."""
    q, k, v = draw()
    lanes = L.Lanes(bias=(L.Toeplitz(jnp.float64(40.0), _log_cosine),))
    angle = np.pi * np.asarray(packed().index) / 80
    wide = lambda x: np.concatenate([x * np.cos(angle)[..., None, None],
                                     x * np.sin(angle)[..., None, None]], -1)
    want = pairs_loop(wide(q), wide(k), v, lambda *pair: (np.eye(2 * K), 1.0), "sum")
    close(mix(q, k, v, packed(), lanes, normaliser="sum"), want)


def _log_cosine(params, distance):
    return jnp.log(jnp.cos(jnp.pi * distance / (2 * params)))[..., None] * jnp.ones(H)


def layer(name, position="no_pe", form="auto", **options):
    spec = dict(name=name, form=form, **options)
    return mixers.make(spec, position=position, width=D, train_length=T, parent=None)


def run(mixer, found, x, seq, state=None, shared=None):
    """Output and next state."""
    return jax.jit(mixer.apply)(found, x, seq, state, shared)


def started(mixer, seq, dtype=jnp.float64, spread=0.3):
    """Input [B,T,D] and moved variables of a mixer."""
    x = jax.random.normal(jax.random.key(0), (B, T, D), dtype)
    found = nn.unbox(jax.jit(mixer.init)(jax.random.key(1), x, seq))
    leaves, tree = jax.tree.flatten(found)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + spread * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys)]
    return x, jax.tree.unflatten(tree, moved)


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


# ---- streams, forms and refusals -----------------------------------------------------------------

LINEAR, RETENTION = ("linear_attention", {}), ("retention", {})
MAMBA2 = ("mamba2", dict(state_dim=6, num_groups=2))


@pytest.mark.parametrize("form,name,options", [
    ("chunked", *LINEAR), ("quadratic", *RETENTION), ("chunked", *MAMBA2), ("quadratic", *MAMBA2)])
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


def test_forms_that_do_not_exist_say_so():
    q, k, v = draw()
    toeplitz, constant = pair_lane("toeplitz")[0], pair_lane("constant")[0]
    with pytest.raises(Refusal, match="R2.*finite-rank"):
        mix(q, k, v, packed(), toeplitz, "step")
    with pytest.raises(Unimplemented, match="chunked form.*FFT"):
        mix(q, k, v, packed(), toeplitz, "chunked")
    with pytest.raises(Unimplemented, match="ring buffer"):
        mix(q, k, v, packed(), constant, "step")
    with pytest.raises(ConfigError, match="parallel.*Known: auto, chunked"):
        mix(q, k, v, packed(), form="parallel")
    with pytest.raises(ConfigError, match="choose 'sum' or None"):
        mix(q, k, v, packed(), normaliser="max")
    for bad in (dict(num_heads=3), dict(num_kv_heads=3)):
        with pytest.raises(ConfigError, match="must divide"):
            layer("linear_attention", **bad).site()
    with pytest.raises(ConfigError, match="num_groups=3 must divide"):
        layer("mamba2", num_groups=3).site()


def test_a_temperature_binds_with_a_note_and_changes_nothing():
    q, k, v = draw()
    lanes = L.Lanes(temperature=L.Temperature(jnp.full((1, T, 1), 3.0)))
    assert "R4" in mixers.bind(type(layer("retention")), lanes)[0]
    for form in FORMS:
        close(mix(q, k, v, packed(), lanes, form), mix(q, k, v, packed(), form=form), 1e-7)


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
