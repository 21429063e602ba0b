"""Discrete Fourier transforms of real signals, to convolve by: the library's, and by matrices.

A transform is made for `least` samples and takes at least as many. The order of its frequencies is
its own: spectra are multiplied and turned back, nothing else.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)  # no TF32: 1e-3 of an output


class Fft:
    """The library's fast transform."""

    def __init__(self, least: int):
        self.size = least + least % 2
        while not _quick(self.size):
            self.size += 2

    def spectrum(self, x: jax.Array, axis: int) -> jax.Array:
        """Real [...,n,...], n <= size, then zeros -> complex frequencies on that axis."""
        return jnp.fft.rfft(x, self.size, axis=axis)

    def signal(self, spectrum: jax.Array, axis: int, first: int, count: int) -> jax.Array:
        """Frequencies -> the real samples first .. first + count - 1 on that axis."""
        whole = jnp.fft.irfft(spectrum, self.size, axis=axis)
        return jax.lax.slice_in_dim(whole, first, first + count, axis=axis)


class Monarch:
    """The transform as dense matrix products (order-2 Monarch matrices, arXiv:2310.12109).

    Of sample n columns + m, frequency k + l rows, with size = rows columns, e(t) = exp(2 pi i t):
    X[k,l] = sum_m e(-m l / columns) e(-m k / size) sum_n e(-n k / rows) x[n,m]:
    products with two small matrices and a twiddle between them, O(size^(3/2)) on matrix units. Of
    a real signal k = 0 .. rows / 2 tells all; rows of zeros are not read, nor rows computed that
    nobody asks for. rows = 4 columns makes both products cost alike.
    """

    def __init__(self, least: int):
        self.columns = 2 ** round(math.log2(max(1.0, least / 4)) / 2)
        self.rows = 2 * -(-least // (2 * self.columns))
        self.size = self.rows * self.columns

    def spectrum(self, x: jax.Array, axis: int) -> jax.Array:
        """Real [...,n,...], n <= size, then zeros -> complex frequencies on that axis."""
        x, put_back = _at_middle(x, axis)
        used = -(-x.shape[1] // self.columns)
        x = jnp.pad(x, [(0, 0), (0, used * self.columns - x.shape[1]), (0, 0)])
        x = x.reshape(x.shape[0], used, self.columns, -1)
        outer = _roots(np.arange(used), np.arange(self.rows // 2 + 1), self.rows)
        inside = [_einsum("bnmc,nk->bkmc", x, part.astype(x.dtype)) for part in _parts(outer)]
        real, imag = _times(inside, self._twiddle(), x.dtype)
        real, imag = _product((real, imag), self._inner())
        return put_back(jax.lax.complex(real, imag))

    def signal(self, spectrum: jax.Array, axis: int, first: int, count: int) -> jax.Array:
        """Frequencies -> the real samples first .. first + count - 1 on that axis."""
        y, put_back = _at_middle(spectrum, axis)
        y = y.reshape(y.shape[0], -1, self.columns, y.shape[-1])
        inside = _product((y.real, y.imag), self._inner().conj())
        inside = _times(inside, self._twiddle().conj(), y.real.dtype)
        rows = np.arange(first // self.columns, -(-(first + count) // self.columns))
        half = np.arange(self.rows // 2 + 1)
        mirrored = np.where(half % (self.rows // 2) == 0, 1.0, 2.0)[:, None]  # rows k and -k
        outer = _roots(half, rows, self.rows).conj() * mirrored / self.size
        real, imag = (_einsum("bkmc,kn->bnmc", part, matrix.astype(part.dtype))
                      for part, matrix in zip(inside, _parts(outer)))
        return put_back(real - imag, first - rows[0] * self.columns, count)

    def _inner(self) -> np.ndarray:
        place = np.arange(self.columns)
        return _roots(place, place, self.columns)

    def _twiddle(self) -> np.ndarray:
        return _roots(np.arange(self.rows // 2 + 1), np.arange(self.columns), self.size)


def naive(x: np.ndarray, size: int) -> np.ndarray:
    """The transform of real [n,...] by definition: frequencies 0 .. size - 1, for tests."""
    return np.tensordot(_roots(np.arange(size), np.arange(x.shape[0]), size), x, 1)


def _roots(rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    """exp(-2 pi i a b / size) in double, from whole numbers reduced first."""
    return np.exp(-2j * np.pi * (np.outer(rows, columns) % size) / size)


def _parts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.real(matrix), np.imag(matrix)


def _times(pair, factor: np.ndarray, dtype):
    """Entry by entry: a complex array [B,K,M,C] as (real, imag), factor [K,M]."""
    real, imag = pair
    cos, sin = (part.astype(dtype)[..., None] for part in _parts(factor))
    return real * cos - imag * sin, real * sin + imag * cos


def _product(pair, matrix: np.ndarray):
    """The same along M, by a complex matrix [M,L]."""
    real, imag = pair
    cos, sin = (part.astype(real.dtype) for part in _parts(matrix))
    along = partial(_einsum, "bkmc,ml->bklc")
    return along(real, cos) - along(imag, sin), along(real, sin) + along(imag, cos)


def _at_middle(x, axis):
    """[...,n,...] -> [B,n,C], and the way back, perhaps of a part of the middle."""
    lead, rest = x.shape[:axis], x.shape[axis + 1:]

    def put_back(y, first=0, count=None):
        y = y.reshape(y.shape[0], -1, y.shape[-1])
        count = y.shape[1] - first if count is None else count
        return y[:, first:first + count].reshape(*lead, count, *rest)

    return x.reshape(math.prod(lead), x.shape[axis], math.prod(rest)), put_back


def _quick(size: int) -> bool:
    """Whether its only factors are 2, 3 and 5, which fast transforms handle quickly."""
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    return size == 1
