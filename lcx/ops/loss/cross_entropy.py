"""Negative log-likelihood of the next token, some tokens of logits at a time.

Its own backward pass recomputes a chunk's logits (or keeps them where one chunk is all) beside the
saved log-sum-exp, and sums the table's gradient over the chunks in at least float32.
"""

from functools import partial

import jax
import jax.numpy as jnp

# elements of [B,chunk,V]: 16 MiB in float32 stay in a CPU's cache, 256 MiB fill an accelerator
LOGITS_AT_ONCE = {"cpu": 2**22}
LOGITS_AT_ONCE_ELSEWHERE = 2**26


def cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None = None,
    logit_softcap: float | None = None,
) -> jax.Array:
    """nll_t = logsumexp_v(z_tv) - z_t,target with logits z = hidden table^T, in nats.

    Args:
      hidden: [B,T,D] in the compute dtype, which the matmuls run in.
      table: [V,D]. Pass the parameters as they are kept (float32): they are cast per chunk, so
        that their gradient is summed without rounding between chunks.
      targets: [B,T] int. One outside [0, V) makes its nll NaN: padding needs a target in range.
      chunk: tokens of every row at once; None takes what a bound on [B,chunk,V] allows. All T at
        once keep the logits for the backward pass. Rows are never split, so that a sharded batch
        stays sharded.
      logit_softcap: c replaces z by c tanh(z / c).

    Returns:
      nll [B,T], at least float32.

    Raises:
      ValueError: a shape that does not fit.
    """
    batch, length, width = hidden.shape
    if table.ndim != 2 or table.shape[1] != width:
        raise ValueError(f"table {table.shape} must be [V,D] with D = {width}, the width of hidden")
    if targets.shape != (batch, length):
        raise ValueError(f"targets {targets.shape} must be {(batch, length)}, one per token")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets are {targets.dtype}: pass token ids as integers")
    if chunk is None:
        bound = LOGITS_AT_ONCE.get(jax.default_backend(), LOGITS_AT_ONCE_ELSEWHERE)
        chunk = max(1, bound // (max(1, batch) * table.shape[0]))
    return _nll(hidden, table, targets, max(1, -(-length // max(1, chunk))), logit_softcap)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _nll(hidden, table, targets, chunks, softcap):
    return _forward(hidden, table, targets, chunks, softcap)[0]


def _forward(hidden, table, targets, chunks, softcap):
    def body(_, piece):
        hidden, targets = piece
        logits = _logits(hidden, table, softcap)
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
        nll = jnp.where(_in_range(targets, table), total - chosen, jnp.nan)
        return None, (nll, total, logits if chunks == 1 else None)

    outputs = _over_chunks(body, None, (hidden, targets), chunks)[1]
    nll, total, logits = jax.tree.map(partial(_join, length=hidden.shape[1]), outputs)
    return nll, (hidden, table, targets, total, logits)


def _backward(chunks, softcap, residuals, cotangent):
    hidden, table, targets, total, logits = residuals
    # a target out of range already made the loss NaN; a gradient that reads it is NaN too
    known = _in_range(targets, table) | (cotangent == 0)
    cotangent = jnp.where(known, cotangent, jnp.nan)

    def body(gradient, piece):
        hidden, targets, total, cotangent, logits = piece
        if logits is None:
            logits = _logits(hidden, table, softcap)
        one_hot = targets[..., None] == jnp.arange(table.shape[0])
        slope = (jnp.exp(logits - total[..., None]) - one_hot) * cotangent[..., None]
        if softcap is not None:
            slope = slope * (1 - (logits / softcap) ** 2)
        # flat matmuls: a contraction over two dimensions costs a CPU a transposed copy
        slope = slope.reshape(-1, slope.shape[-1]).astype(hidden.dtype)
        wide = partial(jnp.einsum, preferred_element_type=gradient.dtype)
        gradient = gradient + wide("tv,td->vd", slope, hidden.reshape(-1, hidden.shape[-1]))
        towards = wide("tv,vd->td", slope, table.astype(hidden.dtype))
        return gradient, towards.astype(hidden.dtype).reshape(hidden.shape)

    zeros = jnp.zeros(table.shape, jnp.promote_types(table.dtype, total.dtype))
    pieces = (hidden, targets, total, cotangent, logits)
    gradient, towards = _over_chunks(body, zeros, pieces, chunks)
    return _join(towards, hidden.shape[1]), gradient.astype(table.dtype), None


_nll.defvjp(_forward, _backward)


def _logits(hidden, table, softcap):
    """[B,C,D], [V,D] -> [B,C,V], accumulated in at least float32."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    table = table.astype(hidden.dtype)
    logits = jnp.einsum(
        "td,vd->tv", hidden.reshape(-1, hidden.shape[-1]), table, preferred_element_type=wide
    ).reshape(*hidden.shape[:-1], -1)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _in_range(targets, table):
    return (targets >= 0) & (targets < table.shape[0])


def _over_chunks(body, carry, arrays, chunks):
    """lax.scan over pieces [B,C,...] of arrays [B,T,...]; the padding has hidden 0, cotangent 0."""
    length = arrays[0].shape[1]
    size = -(-length // chunks)
    if chunks == 1:
        carry, outputs = body(carry, arrays)
        return carry, jax.tree.map(lambda x: x[None], outputs)

    def split(x):
        pad = [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, pad).reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

    return jax.lax.scan(body, carry, jax.tree.map(split, arrays))


def _join(x, length):
    """[N,B,C,...] -> [B,T,...]"""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
