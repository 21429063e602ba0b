"""The recurrence with a ring of near inputs: against its definition, in pieces, gradients, NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.scan.ring import Pair, init_ring, ring_scan
from tests.mixer_cases import turn

B, T, H, K, P, W = 2, 19, 2, 5, 2, 4  # four channels turn, in interleaved pairs, and one does not
DOCUMENTS = ((0, 13), (13, 14), (14, T))
PIECES = ((0, 1), (1, 3), (3, 9), (9, 18), (18, 19))
IDS = np.concatenate([np.cumsum(np.random.default_rng(1).integers(1, 3, b - a))
                      for a, b in DOCUMENTS]).astype(float)
START = np.isin(np.arange(T), [a for a, _ in DOCUMENTS])
SPEED = np.array([0.7, 0.2])


def angle(xp, reader, ids):
    """Leaky ReRoPE's map with window 4: half as fast beyond it."""
    distance = reader - ids
    slow = xp.minimum(distance, W) + 0.5 * xp.maximum(distance - W, 0)
    return -slow[..., None] * SPEED


def weight(xp, reader, ids):
    near = xp.minimum(reader - ids, W)
    return xp.stack([-0.3 * near, 0.4 * (near == 2) + 0.2 * (near == W)], -1)


def made(turns, weighs):
    return Pair(
        (lambda i, j: angle(jnp, i[..., 0], j[..., 0])) if turns else None,
        (lambda i, j: weight(jnp, i[..., 0], j[..., 0])) if weighs else None,
        lambda i, j: i[..., 0] - j[..., 0] >= W,
        jnp.asarray([-0.3 * W, 0.2]) if weighs else 0.0, interleaved=True)


def draw():
    rng = np.random.default_rng(0)
    return dict(log_decay=-rng.exponential(0.3, (B, T, H, K)), value=rng.normal(size=(B, T, H, K)))


def loop(x, turns, weighs):
    """Each input on its own: turned by the change of its angle, then decayed, then weighed."""
    out = np.zeros((B, T, H, K))
    for first, end in DOCUMENTS:
        for j in range(first, end):
            held = x["value"][:, j].copy()
            for i in range(j, end):
                if i > j:
                    change = angle(np, IDS[i], IDS[j]) - angle(np, IDS[i - 1], IDS[j])
                    if turns:
                        held = held @ turn(change, K, interleaved=True).T
                    held = held * np.exp(x["log_decay"][:, i])
                factor = np.exp(weight(np, IDS[i], IDS[j]))[:, None] if weighs else 1.0
                out[:, i] += factor * held
    return out


def slow_turn():
    """What a token turns by beyond the window: half its step."""
    step = np.where(START, 0.0, IDS - np.roll(IDS, 1))
    return jnp.asarray(-0.5 * step[:, None] * SPEED)[None, :, None]


def run(x, turns, weighs, window=W, form=None, pieces=None):
    log_decay, value = jnp.asarray(x["log_decay"]), jnp.asarray(x["value"])
    ids, start = jnp.asarray(IDS)[None, :, None], jnp.asarray(START)[None]
    rotation, pair = slow_turn() if turns else None, made(turns, weighs)
    state = None
    if pieces is not None:
        state = init_ring(B, window, H, K, P if turns else None, 1, value.dtype)
    outs = []
    for a, b in pieces or ((0, T),):
        cut = lambda y, a=a, b=b: None if y is None else y[:, a:b]
        out, state = ring_scan(cut(log_decay), cut(value), cut(ids), pair, window,
                               rotation=cut(rotation), start=cut(start), state=state, form=form)
        outs.append(out)
    return jnp.concatenate(outs, 1)


@pytest.mark.parametrize("turns,weighs", [(True, False), (False, True), (True, True)])
@pytest.mark.full  # the law suite runs every mixer so
def test_every_way_is_the_definition(turns, weighs, x64):
    x, (wanted) = draw(), loop(draw(), turns, weighs)
    ways = dict(whole={}, wide=dict(window=7), quadratic=dict(window=T), chunked=dict(
        form="chunked"), tokens=dict(form="scan"), pieces=dict(pieces=PIECES))
    found = jax.jit(lambda x: {k: run(x, turns, weighs, **way) for k, way in ways.items()})(x)
    for name, out in found.items():
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-10, err_msg=name)


def test_gradients_of_the_ring_are_those_of_all_pairs(x64):
    x = {k: jnp.asarray(v) for k, v in draw().items()}
    sums = [lambda x, w=w: jnp.sum(jnp.sin(run(x, True, True, window=w))) for w in (W, T)]
    got, wanted = (jax.jit(jax.grad(f))(x) for f in sums)
    for name in x:
        assert np.abs(wanted[name]).max() > 0.1
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=1e-10)


def test_an_input_that_leaves_too_early_is_nan_and_never_wrong(x64):
    """Two slots, where ids grow by one or two: an input of distance 2 or 3 has not settled."""
    x, wanted = draw(), loop(draw(), True, True)
    for pieces in (None, PIECES):
        way = jax.jit(lambda x, pieces=pieces: run(x, True, True, window=2, pieces=pieces))
        out = np.asarray(way(x))
        lost = np.isnan(out).any((0, 2, 3))
        assert lost.any() and not lost[:2].any()
        np.testing.assert_allclose(out[:, ~lost], wanted[:, ~lost], atol=1e-10)
