"""Causal convolution with a kernel as long as the text, which never reads another document.

A row of one document is one product of Fourier transforms, padded to twice its length. A packed row
is cut in halves, again and again: of the pairs of tokens that meet at the middle of a block, those
of one document all belong to the one document that crosses it, so that a mask before and after each
transform is exact, at any place of the boundaries.
"""

import functools

import jax
import jax.numpy as jnp

from lcx.ops.conv.fourier import Fft, Monarch

BLOCK = 8  # tokens whose pairs are added one by one


def long_conv(x: jax.Array, kernel: jax.Array, document: jax.Array | None = None,
              transform: type[Fft] | type[Monarch] = Fft) -> jax.Array:
    """y_t = sum_s kernel[s] x_{t-s} over the tokens of t's own document, from its first.

    Args:
      x: [B,T,...C].
      kernel: [L,...C], L >= T; rows from T on are not read.
      document: [B,T] (or [1,T]) int, a number for each document of a row, in one piece each. None:
        a row is one document.
      transform: of Fourier, which changes speed and memory but no result.

    Returns:
      y [B,T,...C], at least float32 (16-bit inputs are widened before the transform).

    Raises:
      ValueError: a shape that does not fit.
    """
    length = x.shape[1]
    _check_shapes(x, kernel, document)
    dtype = jnp.promote_types(jnp.result_type(x, kernel), jnp.float32)
    x, kernel = x.astype(dtype), kernel[:length].astype(dtype)
    if length == 0:
        return x
    if document is None:
        return _whole(x, kernel, transform)
    return _by_halves(x, kernel, document, transform)


def naive(x: jax.Array, kernel: jax.Array, document: jax.Array | None = None) -> jax.Array:
    """The same as a sum over all pairs of tokens, for tests and tiny T."""
    length = x.shape[1]
    _check_shapes(x, kernel, document)
    document = jnp.zeros((1, length), jnp.int32) if document is None else document
    place = jnp.arange(length)
    distance = place[:, None] - place
    mask = (distance >= 0) & (document[:, :, None] == document[:, None])
    mask = mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
    weights = jnp.where(mask, kernel[jnp.maximum(distance, 0)], 0.0)
    return jnp.sum(weights * x[:, None], axis=2)


def _whole(x, kernel, transform):
    length = x.shape[1]
    fourier = transform(2 * length)
    spectrum = fourier.spectrum(x, 1) * fourier.spectrum(kernel, 0)
    return fourier.signal(spectrum, 1, 0, length).astype(x.dtype)


def _by_halves(x, kernel, document, transform):
    length = x.shape[1]
    padded = BLOCK
    while padded < length:
        padded *= 2
    fill = lambda a, axis: jnp.pad(a, [(0, padded - length if n == axis else 0)
                                       for n in range(a.ndim)])
    x, kernel = fill(x, 1), fill(kernel, 0)
    document = jnp.pad(document, [(0, 0), (0, padded - length)], mode="edge")
    out = _inside_blocks(x, kernel, document)
    half = BLOCK
    while half < padded:
        split = lambda a, n=half: a.reshape(a.shape[0], -1, 2, n, *a.shape[2:])
        pieces, owner = split(x), split(document)
        one = owner[:, :, 0, -1:], owner[:, :, 1, :1]  # on the two sides of each middle
        crosses = one[0] == one[1]
        wide = lambda mask: mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
        left = jnp.where(wide((owner[:, :, 0] == one[0]) & crosses), pieces[:, :, 0], 0.0)
        fourier = transform(2 * half)
        spectrum = fourier.spectrum(left, 2) * fourier.spectrum(kernel[:2 * half], 0)
        right = fourier.signal(spectrum, 2, half, half).astype(x.dtype)
        right = jnp.where(wide(owner[:, :, 1] == one[1]), right, 0.0)
        added = jnp.stack([jnp.zeros_like(right), right], axis=2)
        out = out + added.reshape(out.shape)
        half *= 2
    return out[:, :length]


def _inside_blocks(x, kernel, document):
    """Pairs within one block of BLOCK tokens: shifted products, masked."""
    place = jnp.arange(x.shape[1]) % BLOCK
    out = kernel[0] * x
    for back in range(1, BLOCK):
        shift = functools.partial(jnp.roll, shift=back, axis=1)
        mask = (place >= back) & (shift(document) == document)
        mask = mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
        out = out + kernel[back] * jnp.where(mask, shift(x), 0.0)
    return out


def _check_shapes(x, kernel, document) -> None:
    if kernel.ndim != x.ndim - 1 or kernel.shape[0] < x.shape[1]:
        raise ValueError(f"kernel {kernel.shape} must have a row for each of {x.shape[1]} distances"
                         f" and channels that broadcast to x {x.shape}")
    if document is not None and document.shape not in (x.shape[:2], (1, x.shape[1])):
        raise ValueError(f"document {document.shape} must be {x.shape[:2]}")
