"""Long convolutions against sums over pairs, with and without documents; kernels of modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.conv import Fft, Modes, Monarch, fourier, long, long_conv, mode_conv

RNG = np.random.default_rng(0)


def by_matrices(x, kernel, document=None):
    return long_conv(x, kernel, document, Monarch)


def loop(x, kernel, document):
    """[B,T,C] by [L,C], token by token."""
    out = np.zeros(x.shape)
    for b in range(x.shape[0]):
        owner = document[b if document.shape[0] > 1 else 0]
        for i in range(x.shape[1]):
            for j in range(i + 1):
                if owner[i] == owner[j]:
                    out[b, i] += kernel[i - j] * x[b, j]
    return out


@pytest.mark.parametrize("length,bounds", [
    (1, ()), (7, ()), (21, ()), (21, (8,)), (37, (5, 6, 20)), (64, (31, 33)), (70, (16, 48, 69))])
def test_long_conv_never_reads_another_document(x64, length, bounds):
    x, kernel = RNG.normal(size=(2, length, 3)), RNG.normal(size=(length + 4, 3))
    document = np.zeros((2, length), int)
    for bound in bounds:
        document[0, bound:] += 1  # the second row is one document
    given = jnp.asarray(document) if bounds else None
    wanted = loop(x, kernel, document)
    for run in (long_conv, by_matrices, long.naive):
        np.testing.assert_allclose(jax.jit(run)(jnp.asarray(x), jnp.asarray(kernel), given),
                                   wanted, atol=1e-11)


def test_long_conv_gradients_are_those_of_the_pairs(x64):
    x, kernel = (jnp.asarray(RNG.normal(size=s)) for s in ((2, 19, 2), (19, 2)))
    document = jnp.asarray([[0] * 9 + [1] * 10])
    for given in (None, document):
        loss = lambda run, given=given: jax.jit(jax.grad(
            lambda x, k: jnp.sum(jnp.sin(run(x, k, given))), argnums=(0, 1)))(x, kernel)
        for run in (long_conv, by_matrices):
            for got, wanted in zip(loss(run), loss(long.naive)):
                np.testing.assert_allclose(got, wanted, atol=1e-11)


@pytest.mark.parametrize("least", [1, 2, 5, 16, 22, 130, 4096])
def test_transforms_hold_the_frequencies_of_the_definition(x64, least):
    """Which ones, in its own order: half of them and their mirror images, each as it is defined."""
    for kind in (Fft, Monarch):
        transform = kind(least)
        assert least <= transform.size <= 2 * least + 2
        length = min(least, 40)
        x = RNG.normal(size=(2, length, 3))
        found = np.asarray(transform.spectrum(jnp.asarray(x), 1))
        place = np.arange(transform.size // 2 + 1)
        if kind is Monarch:
            rows, columns = transform.rows, transform.columns
            place = (np.arange(rows // 2 + 1)[:, None] + rows * np.arange(columns)).ravel()
            assert set(place) | set(-place % transform.size) == set(range(transform.size))
        for row, wanted in zip(found, x):
            np.testing.assert_allclose(row, fourier.naive(wanted, transform.size)[place],
                                       atol=1e-10)
        first = length // 3
        back = transform.signal(jnp.asarray(found), 1, first, length - first)
        np.testing.assert_allclose(back, x[:, first:], atol=1e-12)


def test_matrices_keep_float32_over_a_long_text():
    """Dense products of up to hundreds of terms each: as near to the truth as a fast transform."""
    x, kernel = (RNG.normal(size=(5000, 1)).astype(np.float32) for _ in range(2))
    wanted = np.convolve(x[:, 0].astype(float), kernel[:, 0].astype(float))[:5000]
    for run in (long_conv, by_matrices):
        y = run(jnp.asarray(x)[None], jnp.asarray(kernel))[0, :, 0]
        np.testing.assert_allclose(y, wanted, atol=3e-6 * np.abs(wanted).max())


def test_long_conv_widens_what_is_narrow_and_says_what_does_not_fit():
    x, kernel = jnp.ones((1, 300, 1), jnp.bfloat16), jnp.ones((300, 1))
    y = long_conv(x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y[0, :, 0], np.arange(1, 301), rtol=1e-5)  # bfloat16 ends at 256
    with pytest.raises(ValueError, match="distances"):
        long_conv(x, kernel[:299])
    with pytest.raises(ValueError, match="document"):
        long_conv(x, kernel, jnp.zeros((1, 299), int))


def modes_loop(pole, weight, x, fade, start):
    state, out = np.zeros((*x.shape[::2], pole.shape[-1]), complex), np.zeros(x.shape)
    for t in range(x.shape[1]):
        state = np.where(start[:, t, None, None], 0, state)
        state = np.exp(pole + fade[:, t, :, None]) * state + x[:, t, :, None]
        out[:, t] = (weight * state).sum(-1).real
    return out, state


@pytest.mark.full  # the law suite runs every mixer so
def test_modes_run_whole_in_chunks_and_step_by_step(x64):
    length = 23
    pole = -0.3 * RNG.random((3, 2)) + 1j * RNG.normal(size=(3, 2))
    weight = RNG.normal(size=(3, 2)) + 1j * RNG.normal(size=(3, 2))
    x, fade = RNG.normal(size=(2, length, 3)), -RNG.random((2, length, 3))
    start = np.zeros((2, length), bool)
    start[:, 0] = start[0, 9] = start[0, 10] = True
    wanted, last = modes_loop(pole, weight, x, fade, start)
    modes = Modes(jnp.asarray(pole), jnp.asarray(weight))
    taps = (weight * np.exp(np.arange(5)[:, None, None] * pole)).sum(-1).real
    np.testing.assert_allclose(modes.taps(5), taps, atol=1e-12)
    given = dict(log_decay=jnp.asarray(fade), start=jnp.asarray(start))
    for options in (dict(form="recurrent"), dict(chunk=5), dict(chunk=64), dict(chunk=1)):
        y, state = mode_conv(modes, jnp.asarray(x), **given, **options)
        np.testing.assert_allclose(y, wanted, atol=1e-12)
        np.testing.assert_allclose(state[..., 0] + 1j * state[..., 1], last, atol=1e-12)
    state, parts = None, []
    for a, b in ((0, 6), (6, 7), (7, 23)):
        cut = {name: array[:, a:b] for name, array in given.items()}
        y, state = mode_conv(modes, jnp.asarray(x[:, a:b]), state=state, chunk=4, **cut)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), wanted, atol=1e-12)
    document = jnp.cumsum(given["start"], 1)
    plain, _ = mode_conv(modes, jnp.asarray(x), start=given["start"], chunk=4)
    np.testing.assert_allclose(long_conv(jnp.asarray(x), modes.taps(length), document), plain,
                               atol=1e-12)
    loss = lambda m, form: jnp.sum(jnp.sin(mode_conv(m, jnp.asarray(x), form=form, chunk=4,
                                                     **given)[0]))
    for got, want in zip(*(jax.tree.leaves(jax.grad(loss)(modes, form))
                           for form in ("chunked", "recurrent"))):
        np.testing.assert_allclose(got, want, atol=1e-10)
