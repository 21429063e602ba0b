"""Linear attention beside what tells near from far: the ring, its stream, and halves by FFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.mixers.linear_family import RingState
from lcx.ops.attention import cache
from lcx.ops.linear import ring
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
    mix,
    packed,
    pairs_loop,
    turn,
)
from tests.test_mixers_linear import FREQUENCY, pair_lane

GATE = -np.random.default_rng(4).exponential(0.2, size=(B, T, H))
PIECES = ((0, 1), (1, 8), (8, 10), (10, T))


def lanes_of(kind):
    """Lanes that tell near from far by a static distance, and the loop's weight of a pair."""
    if kind == "piecewise":
        return pair_lane("piecewise", window=3)
    lanes, weight = pair_lane("constant" if kind.startswith("constant") else "toeplitz")
    if kind.endswith("turned"):
        rotation = L.Rotation(L.split_frequency(FREQUENCY), jnp.float64(1.2))
        return lanes.replace(transport=rotation), lambda b, h, i, j: (
            1.2**2 * turn(-FREQUENCY * (i - j)), weight(b, h, i, j)[1])
    if kind.endswith("faded"):
        fade = -np.random.default_rng(5).exponential(0.3, size=(B, T, 2, K))
        return lanes.replace(transport=L.Diagonal(jnp.asarray(fade))), lambda b, h, i, j: (
            np.diag(np.exp(fade[b, j + 1 : i + 1, h // 2].sum(0))), weight(b, h, i, j)[1])
    return lanes, weight


def expected(kind, normaliser):
    term = lanes_of(kind)[1]

    def weight(b, h, i, j):
        matrix, bias = term(b, h, i, j)
        return matrix, np.exp(bias + GATE[b, j + 1 : i + 1, h].sum())

    return pairs_loop(*draw(), weight, normaliser)


@pytest.mark.parametrize("normaliser", ["sum", None])
@pytest.mark.parametrize("kind", ["constant", "constant turned", "constant faded", "piecewise"])
@pytest.mark.full  # the law suite runs every mixer so
def test_the_ring_is_the_sum_over_all_pairs(kind, normaliser, x64):
    """In one piece, in chunks, and as a stream that is cut anywhere."""
    lanes, want = lanes_of(kind)[0], expected(kind, normaliser)
    q, k, v = map(jnp.asarray, draw())
    got = mix(q, k, v, packed(), lanes, "step", log_decay=jnp.asarray(GATE), normaliser=normaliser)
    close(got, want)
    core = Core(position="no_pe", width=D, train_length=T, kv_heads=2, chunk=4)
    run = lambda a, b, state: core.apply(
        {}, q[:, a:b], k[:, a:b], v[:, a:b], packed()[a:b], cut(lanes, a, b), (), state,
        log_decay=jnp.asarray(GATE[:, a:b]), normaliser=normaliser, method="mix")
    close(jax.jit(lambda: run(0, T, None)[0])(), want)

    @jax.jit
    def stream():
        gated = lanes.replace(bias=(*lanes.bias, L.Separable(jnp.asarray(GATE[:, :1]))))
        like = cache.like(cut(gated, 0, 1), B, 2, K, V, q.dtype)
        state = RingState(ring.init(like, H, K, B, ring.reach(lanes), normaliser is not None), ())
        outputs = []
        for a, b in PIECES:
            out, state = run(a, b, state)
            outputs.append(out)
        return jnp.concatenate(outputs, 1)

    close(stream(), want)


def cut(lanes, a, b):
    """The lanes of tokens a..b."""
    per_token = lambda x: x[:, a:b] if x.ndim > 2 and x.shape[1] == T else x
    return jax.tree.map(per_token, lanes)


@pytest.mark.parametrize("normaliser", ["sum", None])
@pytest.mark.parametrize("kind", ["toeplitz", "toeplitz turned", "toeplitz faded"])
def test_halves_that_meet_by_fft_are_the_sum_over_all_pairs(kind, normaliser, x64):
    lanes = lanes_of(kind)[0]
    core = Core(position="no_pe", width=D, train_length=T, kv_heads=2, chunk=4, form="chunked")
    run = jax.jit(lambda q, k, v: core.apply(
        {}, q, k, v, packed(), lanes, (), None, log_decay=jnp.asarray(GATE),
        normaliser=normaliser, method="mix")[0])
    close(run(*draw()), expected(kind, normaliser))


@pytest.mark.parametrize("kind,form", [("constant turned", "auto"), ("toeplitz", "chunked")])
def test_gradients_are_those_of_the_pairs(kind, form, x64):
    lanes = lanes_of(kind)[0]
    weight = np.random.default_rng(9).normal(size=(B, T, H, V))

    def total(q, k, v, gate, lanes, form):
        core = Core(position="no_pe", width=D, train_length=T, kv_heads=2, chunk=4, form=form)
        return jnp.sum(weight * core.apply({}, q, k, v, packed(), lanes, (), None, log_decay=gate,
                                           normaliser="sum", method="mix")[0])

    slopes = jax.jit(jax.grad(total, (0, 1, 2, 3, 4)), static_argnums=5)
    operands = (*map(jnp.asarray, draw()), jnp.asarray(GATE), lanes)
    got, want = slopes(*operands, form), slopes(*operands, "quadratic")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        close(a, b, 1e-10)
        assert np.abs(b).max() > 1e-6


def test_ids_that_the_forms_of_bounded_state_cannot_read_give_nan(x64):
    """Half steps of ids: near in ids is no longer near in tokens. Over pairs all is well."""
    ids = np.arange(T)[None, :, None] / 2
    seq = L.sequence(1, T, ids=ids)
    for kind in ("constant", "toeplitz"):
        core = Core(position="no_pe", width=D, train_length=T, kv_heads=2, chunk=4, form="chunked")
        lanes = lanes_of(kind)[0]
        run = jax.jit(lambda core, lanes: core.apply(
            {}, *map(jnp.asarray, draw()), seq, lanes, (), None, method="mix")[0],
            static_argnums=0)
        assert np.isnan(run(core, lanes)).any()
        assert np.isfinite(run(core.clone(form="quadratic"), lanes)).all()
