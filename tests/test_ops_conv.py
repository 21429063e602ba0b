"""The short convolution against a NumPy loop; pieces equal the whole; segments stay apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.conv import init_state, short_conv

B, T, D = 2, 11, 3
SEGMENT = np.array([[1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 0], [4, 4, 5, 5, 5, 5, 5, 5, 6, 6, 6]])


def draw(window, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, T, D)), rng.normal(size=(window, D)), rng.normal(size=D)


def loop(x, kernel, bias, segment):
    y = np.zeros_like(x)
    for b, t in np.ndindex(x.shape[:2]):
        y[b, t] = bias
        for s in range(min(len(kernel), t + 1)):
            if segment is None or segment[b, t - s] == segment[b, t]:
                y[b, t] += kernel[len(kernel) - 1 - s] * x[b, t - s]
    return y


@pytest.mark.parametrize("window", [1, 2, 4, 8])
@pytest.mark.parametrize("segment", [None, SEGMENT])
def test_agrees_with_the_loop_whole_and_in_pieces(window, segment, x64):
    x, kernel, bias = draw(window)
    want = loop(x, kernel, bias, segment)
    whole, _ = jax.jit(short_conv)(x, kernel, bias, segment=segment)
    np.testing.assert_allclose(whole, want, atol=1e-12)
    state, parts = init_state(B, window, D, jnp.float64), []
    for a, b in [(0, 1), (1, 2), (2, 7), (7, 10), (10, T)]:
        piece = None if segment is None else jnp.asarray(segment[:, a:b])
        y, state = short_conv(x[:, a:b], kernel, bias, state=state, segment=piece)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), want, atol=1e-12)


def test_without_segments_a_state_goes_on_with_its_last_one(x64):
    x, kernel, bias = draw(4)
    want = loop(x, kernel, bias, SEGMENT[:, [*range(6)] + [5] * 5])  # its tail holds 1, 2, 3
    _, state = short_conv(x[:, :6], kernel, bias, segment=jnp.asarray(SEGMENT[:, :6]))
    y, state = short_conv(x[:, 6:7], kernel, bias, state=state)
    np.testing.assert_allclose(y, want[:, 6:7], atol=1e-12)
    y, state = short_conv(x[:, 7:], kernel, bias, state=state)
    np.testing.assert_allclose(y, want[:, 7:], atol=1e-12)


def test_gradients_are_those_of_the_loop(x64):
    x, kernel, bias = draw(4)
    weight = np.random.default_rng(1).normal(size=x.shape)

    def functional(x, kernel, bias):
        return jnp.sum(weight * short_conv(x, kernel, bias, segment=jnp.asarray(SEGMENT))[0])

    got = jax.jit(jax.grad(functional, (0, 1, 2)))(x, kernel, bias)
    for place, array in enumerate((x, kernel, bias)):
        want = np.zeros_like(array)
        for i in np.ndindex(array.shape):  # the map is linear in each: a difference is exact
            moved = [x.copy(), kernel.copy(), bias.copy()]
            moved[place][i] += 1
            want[i] = np.sum(weight * (loop(*moved, SEGMENT) - loop(x, kernel, bias, SEGMENT)))
        np.testing.assert_allclose(got[place], want, atol=1e-10)


def test_a_shared_segment_row_and_bfloat16():
    x, kernel, bias = draw(3)
    y, state = short_conv(jnp.asarray(x, jnp.bfloat16), kernel, bias, segment=SEGMENT[:1])
    assert y.dtype == state.tail.dtype == jnp.bfloat16
    want = loop(x, kernel, bias, np.repeat(SEGMENT[:1], B, 0))
    np.testing.assert_allclose(np.asarray(y, np.float64), want, atol=0.05)


def test_errors_say_what_to_do():
    x, kernel, bias = (jnp.asarray(a, jnp.float32) for a in draw(4))
    with pytest.raises(ValueError, match="make it with init_state"):
        short_conv(x, kernel, state=init_state(B, 3, D))
    with pytest.raises(ValueError, match="kernel .* must be"):
        short_conv(x, kernel.T)
    with pytest.raises(ValueError, match="segment .* must be"):
        short_conv(x, kernel, segment=SEGMENT[:, 1:])
