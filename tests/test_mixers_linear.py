"""The core of the linear mixers: every lane against loops, its forms, and published identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError, Refusal, Unimplemented
from tests.linear_cases import (
    B,
    Core,
    D,
    H,
    K,
    T,
    V,
    close,
    draw,
    layer,
    mix,
    packed,
    pairs_loop,
    recurrence,
    starts,
    turn,
)

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


def pair_lane(kind, **far):
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
        (_same, _same), (_capped, _zero)), **far))
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


def test_forms_that_do_not_exist_say_so():
    q, k, v = draw()
    toeplitz, constant = pair_lane("toeplitz")[0], pair_lane("constant")[0]
    with pytest.raises(Refusal, match="R2.*finite-rank"):
        mix(q, k, v, packed(), toeplitz, "step")
    path = L.Householder(jnp.zeros((B, T, 2, K)), jnp.zeros((B, T, 2)))
    for lanes in (toeplitz.replace(transport=path), constant.replace(transport=path)):
        with pytest.raises(Unimplemented, match="chunked form.*does not factor"):
            mix(q, k, v, packed(), lanes, "chunked")
    with pytest.raises(Refusal, match="R2.*turned alike"):
        mix(q, k, v, packed(), pair_lane("piecewise")[0], "step")
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
