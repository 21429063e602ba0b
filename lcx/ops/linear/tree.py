"""Linear attention under a static kernel of the distance, O(n log^2 n): halves that meet by FFT.

A text is cut into halves, their halves and so on; each pair of tokens is apart in exactly one cut,
or in one small block. Across a cut at m the transport factors: gates after j up to m, then up to i,
both <= 1; what remains is a kernel of i - j, a convolution. One document alone crosses a cut, so a
packed row needs a mask of queries and one of keys. No kernel-wide factor exp(+gates) ever appears.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx.ops.linear.decay import Decay
from lcx.types import wide


def toeplitz_attention(query: jax.Array, key: jax.Array, value: jax.Array, kernel: jax.Array, *,
                       log_decay: jax.Array | None = None, start: jax.Array | None = None,
                       block: int) -> jax.Array:
    """o_i = sum_{j<=i} kernel[i-j] <q_i, exp(gates after j up to i) k_j> v_j, of one document each.

    query, key [B,T,H,K], value [B,T,H,V]; kernel [T,H], not its log; log_decay [B,T,H] or
    [B,T,H,K], <= 0; start [B,T] bool, true at each document's first token; block: tokens whose
    pairs are weighed one by one, a multiple of 16 beyond 16. Returns [B,T,H,V], wide.
    """
    batch, length, heads, _ = query.shape
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if start is not None:
        start = jnp.broadcast_to(start, (batch, length))
    size = min(block, -(-length // 16) * 16)
    levels = max(0, (-(-length // size) - 1).bit_length())
    whole = size << levels
    pad = lambda x: None if x is None else jnp.pad(
        x, [(0, 0), (0, whole - length)] + [(0, 0)] * (x.ndim - 2))
    query, key, value = (pad(wide(x)) for x in (query, key, value))
    log_decay, start = pad(log_decay), pad(start)
    kernel = jnp.pad(wide(kernel), [(0, whole - length), (0, 0)]).T  # [H,T]

    def cut(x, chunk):  # [B,T,H,*] -> [B,N,H,C,*]
        x = x.reshape(batch, -1, chunk, *x.shape[2:])
        return jnp.swapaxes(x, 2, 3)

    def decay(chunk):
        split = lambda x: None if x is None else x.reshape(batch, -1, chunk, *x.shape[2:])
        shape = cut(query, chunk).shape
        return Decay.of_chunk(split(log_decay), split(start), shape, query.dtype)

    def joined(x):  # [B,N,H,C,V] -> [B,T,H,V]
        return jnp.swapaxes(x, 2, 3).reshape(batch, whole, heads, -1)

    apart = jnp.arange(size)[:, None] - jnp.arange(size)
    weights = decay(size).product(cut(query, size), cut(key, size))
    weights = weights * kernel[:, jnp.maximum(apart, 0)]
    out = joined(jnp.einsum("bnhij,bnhjv->bnhiv", weights, cut(value, size)))
    for level in range(levels):
        half = size << level
        halves = decay(half)
        reads = halves.from_start(cut(query, half))[:, 1::2]
        keys = halves.to_end(cut(key, half))[:, 0::2]
        far = _across(reads, keys, cut(value, half)[:, 0::2], kernel[:, : 2 * half])
        far = jnp.stack([jnp.zeros_like(far), far], 2)
        out = out + joined(far.reshape(batch, -1, *far.shape[3:]))
    return out[:, :length]


@jax.checkpoint
def _across(reads, keys, value, kernel):
    """Queries of right halves over keys of left ones [B,N,H,C,*], kernel [H,2C] of the distance."""
    size = reads.shape[-2]
    # lag m = i - j inside the halves, from -(C-1) to C-1, is the distance C + m; -C is none
    lags = jnp.roll(kernel.at[:, 0].set(0), -size, axis=-1)
    spectrum = jnp.fft.rfft(lags, axis=-1)[..., None]  # [H,F,1]

    @jax.checkpoint
    def channel(value):  # [B,N,H,C]: one channel of the values, so that [C,K] alone is held
        z = jnp.fft.rfft(keys * value[..., None], n=2 * size, axis=-2)
        z = jnp.fft.irfft(z * spectrum, n=2 * size, axis=-2)[..., :size, :]
        return jnp.sum(reads * z, -1)

    out = jax.lax.map(channel, jnp.moveaxis(value, -1, 0))
    return jnp.moveaxis(out, 0, -1)
