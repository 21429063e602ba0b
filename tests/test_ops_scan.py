"""The element-wise recurrence: four forms against a NumPy loop, gradients, pieces and packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.scan import diagonal_scan

B, T, H, K = 2, 23, 2, 4
FORMS = ["scan", "chunked", "associative", "quadratic"]
CASES = [(f, r) for f in FORMS for r in (False, True) if not (f == "quadratic" and r)]


def draw(rotated, length=T, seed=0):
    rng = np.random.default_rng(seed)
    x = dict(
        log_decay=-rng.exponential(0.5, size=(B, length, H, K)),
        value=rng.normal(size=(B, length, H, K)),
        state=rng.normal(size=(B, H, K)),
    )
    if rotated:
        x["rotation"] = rng.normal(size=(B, length, H, K // 2))
    return x


def loop(log_decay, value, state, rotation=None, start=None):
    """The definition, with the 2 x 2 rotation of each pair written out as a matrix."""
    out, h = np.zeros(value.shape), np.array(state, np.float64)
    for b, t, head in np.ndindex(value.shape[:3]):
        matrix = np.eye(K)
        if rotation is not None:
            for c, angle in enumerate(rotation[b, t, head]):
                pair = np.ix_([c, c + K // 2], [c, c + K // 2])
                matrix[pair] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        if start is not None and start[b, t]:
            matrix = 0 * matrix
        decay = np.exp(log_decay[b, t, head])
        h[b, head] = decay * (matrix @ h[b, head]) + value[b, t, head]
        out[b, t, head] = h[b, head]
    return out, h


def call(x, dtype=None, **options):
    x = {n: jnp.asarray(a, a.dtype if a.dtype == bool else dtype) for n, a in x.items()}
    return jax.jit(lambda x: diagonal_scan(x.pop("log_decay"), x.pop("value"), **x, **options))(x)


def close(got, want, tolerance):
    for g, w in zip(got, want):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form, rotated", CASES)
def test_agrees_with_the_loop(form, rotated, x64):
    x = draw(rotated)
    close(call(x, form=form), loop(**x), 1e-10)


@pytest.mark.parametrize("form, rotated", CASES)
def test_agrees_with_the_loop_in_float32_packed_and_extreme(form, rotated):
    x = draw(rotated, seed=1)
    rng = np.random.default_rng(2)
    x["log_decay"] = rng.choice([-1e4, -50.0, -1e-9, 0.0], size=x["log_decay"].shape)
    x["start"] = rng.random((B, T)) < 0.2
    out, state = call(x, jnp.float32, form=form)
    assert out.dtype == state.dtype == jnp.float32
    # the sums of log gates that the quadratic form takes reach 1e5: differences lose digits
    close((out, state), loop(**x), 2e-2 if form == "quadratic" else 1e-4)


@pytest.mark.parametrize("form, rotated", [c for c in CASES if c[0] != "scan"])
def test_gradients_equal_those_of_the_scan(form, rotated, x64):
    x = draw(rotated, seed=3) | dict(start=np.random.default_rng(4).random((B, T)) < 0.1)
    start = x.pop("start")
    weight = np.random.default_rng(5).normal(size=x["value"].shape)

    def gradient(form):
        def functional(x):
            x = dict(x)
            out, state = diagonal_scan(
                x.pop("log_decay"), x.pop("value"), **x, start=start, form=form
            )
            return jnp.sum(weight * out) + jnp.sum(state**2)

        return jax.jit(jax.grad(functional))(x)

    got, want = gradient(form), gradient("scan")
    for name in x:
        assert np.abs(want[name]).max() > 1e-3
        close([got[name]], [want[name]], 1e-9)


def test_the_gradient_of_the_scan_is_a_finite_difference(x64):
    x, rng = draw(True, length=6), np.random.default_rng(6)

    @jax.jit
    def functional(x):
        x = dict(x)
        return jnp.sum(jnp.sin(diagonal_scan(x.pop("log_decay"), x.pop("value"), **x)[0]))

    gradient = jax.jit(jax.grad(functional))(x)
    for name in x:
        d = rng.normal(size=x[name].shape)
        up, down = (functional(x | {name: x[name] + s * 1e-5 * d}) for s in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-5, jnp.sum(gradient[name] * d), rtol=1e-6)


@pytest.mark.parametrize("form", ["scan", "chunked", "associative"])
def test_closed_gates_have_finite_gradients(form):
    x = {n: jnp.asarray(a, jnp.float32) for n, a in draw(True).items()}
    x["log_decay"] = jnp.where(x["log_decay"] < -0.5, -jnp.inf, -1e-9)
    gradient = jax.jit(jax.grad(lambda x: diagonal_scan(**x, form=form)[0].sum()))(x)
    assert all(np.isfinite(g).all() for g in gradient.values())


@pytest.mark.parametrize("form, rotated", CASES)
def test_uneven_pieces_and_packed_documents(form, rotated, x64):
    x = draw(rotated)
    start = np.zeros((B, T), bool)
    start[0, [0, 4, 5, 16]] = start[1, [9]] = True
    want = loop(**x, start=start)
    state, parts = x.pop("state"), []
    for a, b in [(0, 1), (1, 13), (13, 15), (15, T)]:
        piece = {n: v[:, a:b] for n, v in x.items()} | dict(start=start[:, a:b], state=state)
        out, state = call(piece, form=form)
        parts.append(out)
    close((jnp.concatenate(parts, 1), state), want, 1e-10)
    for a, b in [(0, 4), (4, 5), (5, 16), (16, T)]:
        alone = {n: v[:1, a:b] for n, v in x.items()}
        close([want[0][:1, a:b]], loop(**alone, state=np.zeros((1, H, K))), 1e-12)


def test_a_shared_gate_broadcasts(x64):
    x = draw(False)
    shared = x | dict(log_decay=x["log_decay"][..., :1])
    x["log_decay"] = np.broadcast_to(shared["log_decay"], x["value"].shape)
    close(call(shared), loop(**x), 1e-10)


def test_errors_say_what_to_do():
    x = draw(True)
    with pytest.raises(ValueError, match="choose one of scan, chunked"):
        call(x, form="fft")
    with pytest.raises(ValueError, match="the quadratic form has no rotation"):
        call(x, form="quadratic")
    with pytest.raises(ValueError, match="an angle per pair"):
        call(x | dict(rotation=x["rotation"][..., :1]))
    with pytest.raises(ValueError, match="must be bool"):
        call(x | dict(start=np.zeros((B, T))))
    with pytest.raises(ValueError, match=r"must be \[B,T,...,D\]"):
        call(x | dict(log_decay=x["log_decay"][0]))
    with pytest.raises(ValueError, match=r"must be \[B,T,...,D\]"):
        call(dict(value=np.zeros((B, T)), log_decay=np.zeros((B, T))))
