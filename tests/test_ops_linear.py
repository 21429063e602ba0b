"""Linear attention: every form against a NumPy loop, its gradients, streaming and packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.linear import linear_attention

B, T, H, K, V = 2, 37, 2, 4, 3
KINDS = ["plain", "scalar", "channel", "erase", "scalar erase", "channel erase", "scalar delta",
         "turn", "channel turn", "channel turn delta"]


def draw(kind, length=T, seed=0, decay=None):
    rng = np.random.default_rng(seed)
    x = dict(
        query=rng.normal(size=(B, length, H, K)),
        key=rng.normal(size=(B, length, H, K)),
        value=rng.normal(size=(B, length, H, V)),
        state=rng.normal(size=(B, H, K, V)),
    )
    if "scalar" in kind or "channel" in kind:
        shape = (B, length, H) + ((K,) if "channel" in kind else ())
        x["log_decay"] = -rng.exponential(0.3, size=shape) if decay is None else decay(rng, shape)
    if "erase" in kind or "delta" in kind:
        erase = rng.normal(size=(B, length, H, K))
        x["erase"] = erase / np.linalg.norm(erase, axis=-1, keepdims=True)
        x["beta"] = rng.uniform(0, 2, size=(B, length, H))
    if "delta" in kind:
        x["key"] = None
    if "turn" in kind:  # pairs (0, 1) half-split: channels 2 and 3 are not turned
        x["rotation"] = rng.normal(size=(B, length, H, 1))
    return x


def turned(angles, size, interleaved=False):
    """The matrix that turns channel pairs by `angles`."""
    out = np.eye(size)
    for m, angle in enumerate(angles):
        a, b = (2 * m, 2 * m + 1) if interleaved else (m, m + len(angles))
        out[a, a] = out[b, b] = np.cos(angle)
        out[a, b], out[b, a] = -np.sin(angle), np.sin(angle)
    return out


def loop(query, key, value, state, log_decay=None, erase=None, beta=None, start=None,
         rotation=None, interleaved=False):
    """The definition, one head and one token at a time, in float64."""
    state = np.array(state, np.float64)
    out = np.zeros(value.shape)
    for b in range(query.shape[0]):
        for h in range(query.shape[2]):
            s = state[b, h]
            for t in range(query.shape[1]):
                if start is not None and start[b, t]:
                    s = np.zeros_like(s)
                if rotation is not None:
                    s = turned(rotation[b, t, h], len(s), interleaved) @ s
                if log_decay is not None:
                    s = np.diag(np.exp(log_decay[b, t, h] * np.ones(s.shape[0]))) @ s
                k = None if key is None else key[b, t, h]
                if erase is not None:
                    w = erase[b, t, h]
                    s = (np.eye(len(w)) - beta[b, t, h] * np.outer(w, w)) @ s
                    k = beta[b, t, h] * w if k is None else k
                s = s + np.outer(k, value[b, t, h])
                out[b, t, h] = query[b, t, h] @ s
            state[b, h] = s
    return out, state


def call(x, dtype=None, **options):
    start = {"start": jnp.asarray(x["start"])} if "start" in x else {}
    x = {n: None if a is None else jnp.asarray(a, dtype) for n, a in x.items()} | start
    query, key, value = x.pop("query"), x.pop("key"), x.pop("value")
    return jax.jit(lambda q, k, v, r: linear_attention(q, k, v, **r, **options))(
        query, key, value, x
    )


def close(got, want, tolerance):
    for g, w in zip(got, want):
        w = np.asarray(w)
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance * max(1, abs(w).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [None, 16, 32])
def test_agrees_with_the_loop_in_float64(kind, chunk, x64):
    x = draw(kind)
    form = dict(form="chunked", chunk=chunk) if chunk else dict(form="recurrent")
    out, state = call(x, **form)
    assert out.dtype == state.dtype == jnp.float64
    close((out, state), loop(**x), 1e-10)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_interleaved_pairs_turn_with_a_state_in_the_callers_layout(form, x64):
    x = draw("channel turn erase", seed=3)
    x["rotation"] = np.random.default_rng(4).normal(size=(B, T, H, 2))
    close(call(x, form=form, chunk=16, interleaved=True), loop(**x, interleaved=True), 1e-10)


def test_tied_gates_turn_like_queries_and_keys_by_their_own_phases(x64):
    """Transport is endpoint semantics where both gates of a pair are one."""
    x = draw("turn")
    step = x.pop("rotation")
    want = call(x | dict(log_decay=-np.ones((B, T, H)) / 3, rotation=step, state=0 * x["state"]))
    phase = -np.cumsum(step, 1)  # the state turns back by what a query turns

    def turn(a):
        return np.stack([turned(p, K) @ row for p, row in zip(
            phase.reshape(-1, 1), a.reshape(-1, K))]).reshape(a.shape)

    x |= dict(query=turn(x["query"]), key=turn(x["key"]), state=0 * x["state"])
    close(call(x | dict(log_decay=-np.ones((B, T, H)) / 3))[:1], want[:1], 1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_loop_in_float32_across_spans(kind, monkeypatch):
    monkeypatch.setattr("lcx.ops.linear.chunked.SPAN", {"cpu": 1})  # five chunks, five spans
    x = draw(kind, seed=1)
    out, state = call(x, jnp.float32, chunk=8)
    assert out.dtype == state.dtype == jnp.float32
    close((out, state), loop(**x), 1e-4)


@pytest.mark.parametrize("kind", ["scalar", "channel erase", "scalar delta"])
def test_bfloat16_operands_keep_a_float32_state(kind):
    x = draw(kind)
    gates = {n: jnp.asarray(x.pop(n)) for n in ("log_decay", "beta", "state") if n in x}
    x = {n: None if a is None else jnp.asarray(a, jnp.bfloat16) for n, a in x.items()}
    query, key, value = x.pop("query"), x.pop("key"), x.pop("value")
    run = jax.jit(lambda q, k, v, r: linear_attention(q, k, v, **r))
    out, state = run(query, key, value, x | gates)
    assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    full = {n: None if a is None else np.asarray(a, np.float64) for n, a in (x | gates).items()}
    key = None if key is None else np.asarray(key, np.float64)
    want = loop(np.asarray(query, np.float64), key, np.asarray(value, np.float64), **full)
    close((np.asarray(out, np.float64), state), want, 3e-2)


def gradients(x, **options):
    """Gradients of a fixed random functional of out and state, for every operand."""
    x = {n: None if a is None else jnp.asarray(a) for n, a in x.items()}
    start = x.pop("start", None)
    w = np.random.default_rng(9).normal(size=x["value"].shape)
    u = np.random.default_rng(8).normal(size=(B, H, K, V))

    def functional(x):
        x = dict(x)
        query, key, value = x.pop("query"), x.pop("key"), x.pop("value")
        out, state = linear_attention(query, key, value, **x, start=start, **options)
        return jnp.sum(out * w) + jnp.sum(state * u)

    return functional, x


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_forms_agree(kind, x64):
    x = draw(kind, seed=2) | dict(start=np.random.default_rng(5).random((B, T)) < 0.1)
    functional, operands = gradients(x, chunk=32)
    got = jax.jit(jax.grad(functional))(operands)
    functional, operands = gradients(x, form="recurrent")
    want = jax.jit(jax.grad(functional))(operands)
    for name in got:
        if got[name] is not None:
            close([got[name]], [want[name]], 1e-9)
            assert np.abs(want[name]).max() > 1e-3, f"{name} is dead"


@pytest.mark.parametrize("kind", ["scalar erase", "channel"])
def test_gradients_are_finite_differences(kind, x64):
    functional, x = gradients(draw(kind, length=5), chunk=16)
    functional = jax.jit(functional)
    gradient = jax.jit(jax.grad(functional))(x)
    rng = np.random.default_rng(3)
    for name in x:
        direction = rng.normal(size=x[name].shape)
        moved = [functional(x | {name: x[name] + s * 1e-5 * direction}) for s in (1, -1)]
        np.testing.assert_allclose(
            (moved[0] - moved[1]) / 2e-5, jnp.sum(gradient[name] * direction), rtol=1e-6
        )


@pytest.mark.parametrize("kind", ["plain", "channel erase", "scalar delta",
                                  "channel turn erase"])
def test_uneven_pieces_with_a_state_equal_the_whole(kind, x64):
    x = draw(kind)
    want = loop(**x)
    state, outs = x.pop("state"), []
    for a, b in [(0, 1), (1, 18), (18, 20), (20, T)]:
        piece = {n: None if v is None else v[:, a:b] for n, v in x.items()}
        out, state = call(piece | dict(state=state), chunk=16)
        outs.append(out)
    close((jnp.concatenate(outs, 1), state), want, 1e-10)


@pytest.mark.parametrize("kind", ["scalar", "channel", "scalar erase", "channel erase",
                                  "channel turn erase"])
@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_a_packed_row_equals_its_documents_alone(kind, form, x64):
    x = draw(kind)
    cuts = [[0, 5, 6, 22, T], [16, 32, T]]  # row 1 goes on from its state and cuts at a chunk
    start = np.zeros((B, T), bool)
    for row, places in enumerate(cuts):
        start[row, places[:-1]] = True
    # a closed gate at a start is harmless: the state is zero there
    x["log_decay"][np.nonzero(start)] = -np.inf if form == "chunked" else -50.0
    out, state = call(x | dict(start=start), form=form, chunk=16)
    for row, places in enumerate(cuts):
        first = [(0, places[0])] if places[0] else []
        for a, b in first + list(zip(places, places[1:])):
            alone = {n: v[row : row + 1, a:b] for n, v in x.items() if n != "state"}
            alone["log_decay"] = np.maximum(alone["log_decay"], -50.0)
            before = x["state"][row : row + 1] * (not start[row, a])
            want, last = loop(**alone, state=before)
            close([out[row : row + 1, a:b]], [want], 1e-10)
        close([state[row : row + 1]], [last], 1e-10)


@pytest.mark.parametrize("kind", ["scalar", "channel", "scalar erase", "channel erase",
                                  "channel turn erase"])
def test_extreme_gates_stay_finite(kind):
    def gates(rng, shape):
        return rng.choice([-np.inf, -50.0, -1.0, -1e-9, 0.0], size=shape)

    x = draw(kind, decay=gates)
    out, state = call(x, jnp.float32, chunk=32)
    close((out, state), loop(**x), 1e-3)
    functional, operands = gradients(x, chunk=32)
    operands = jax.tree.map(lambda a: a.astype(jnp.float32), operands)
    got = jax.jit(jax.grad(functional))(operands)
    with jax.enable_x64(True):
        functional, operands = gradients(x, form="recurrent")
        want = jax.jit(jax.grad(functional))(operands)
        for name in got:
            close([got[name]], [want[name]], 2e-3)


def test_closed_gates_at_the_starts_cost_no_digits_elsewhere():
    x = draw("scalar", length=64, decay=lambda rng, shape: -rng.random(shape) / 8)
    start = np.zeros((B, 64), bool)
    start[:, : 2 * 24 : 2] = True
    x["log_decay"][start] = -np.inf  # summed, they would leave differences 1e-4 wrong
    want = loop(**x, start=start)
    close(call(x | dict(start=start), jnp.float32), want, 3e-6)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_repeated_erase_directions_do_not_lose_digits(beta):
    """All tokens erase along one direction: powers of the system matrix reach 1e18."""
    x = draw("scalar delta", length=64)
    x["erase"][:] = x["erase"][:, :1]
    x["beta"][:] = beta
    x["log_decay"][:] = -1e-9
    close(call(x, jnp.float32, chunk=64), loop(**x), 1e-4)


def test_errors_say_what_to_do():
    x = draw("scalar erase")
    with pytest.raises(ValueError, match="choose 'chunked' or 'recurrent'"):
        call(x, form="parallel")
    with pytest.raises(ValueError, match="erase and beta go together"):
        call({n: v for n, v in x.items() if n != "beta"})
    with pytest.raises(ValueError, match="key=None means"):
        call({n: v for n, v in x.items() if n not in ("erase", "beta")} | dict(key=None))
    with pytest.raises(ValueError, match="log_decay has shape"):
        call(x | dict(log_decay=x["log_decay"][:, :-1]))
    with pytest.raises(ValueError, match="rotation has shape"):
        call(x | dict(rotation=np.zeros((B, T, H, K))))
    with pytest.raises(ValueError, match="start is float"):
        call(x | dict(start=np.zeros((B, T), np.float32)))
