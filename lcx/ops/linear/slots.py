"""A linear memory whose columns forget apart: what a few slots hold of all keys.

S_t = S_{t-1} diag(exp(gate_t)) + k_t w_t^T, read by q_t: out_tm = sum_{j<=t} (q_t.k_j) w_jm
exp(sum of gate_m after j), the transpose of a memory whose rows forget (`linear_attention` with a
gate per channel), for which the products q.k come before the decay and not after it.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

BLOCK = 16  # pairs inside a block are weighed one by one, all others by matmul


def slot_memory(query: jax.Array, key: jax.Array, write: jax.Array, gate: jax.Array, *,
                state: jax.Array | None = None, start: jax.Array | None = None,
                form: str = "chunked", chunk: int = 64) -> tuple[jax.Array, jax.Array]:
    """query, key [B,T,H,K], write and log gate <= 0 [B,T,H,M] -> out [B,T,H,M], state [B,H,K,M].

    start [B or 1,T] bool, true where a segment starts: S is zeroed before that token. form:
    "chunked" (matmuls) or "recurrent" (token by token, the naive twin). Both results are at least
    float32. Raises ValueError on an unknown form.
    """
    if form not in ("chunked", "recurrent"):
        raise ValueError(f"form is {form!r}: choose 'chunked' or 'recurrent'")
    batch, length, heads, size = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    if state is None:
        state = jnp.zeros((batch, heads, size, write.shape[-1]), dtype)
    if start is None:
        start = jnp.zeros((1, 1), bool)
    start = jnp.broadcast_to(start, (batch, length))
    gate = jnp.maximum(gate.astype(dtype), math.log(jnp.finfo(dtype).tiny))
    tokens = (query, key, write, gate, start)
    if form == "recurrent" or length == 1:
        state, out = jax.lax.scan(_step, state, jax.tree.map(_time_first, tokens))
        return jnp.moveaxis(out, 0, 1), state
    chunk = min(chunk, -(-length // BLOCK) * BLOCK)
    count = -(-length // chunk)

    def split(x):  # [B,T,...] -> [count,B,chunk,...]; padding writes nothing and forgets nothing
        x = jnp.pad(x, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (x.ndim - 2))
        return _time_first(x.reshape(batch, count, chunk, *x.shape[2:]))

    state, out = jax.lax.scan(jax.checkpoint(_chunk), state, jax.tree.map(split, tokens))
    out = jnp.moveaxis(out, 0, 1).reshape(batch, count * chunk, *out.shape[3:])
    return out[:, :length], state


def _time_first(x):
    return jnp.moveaxis(x, 1, 0)


def _step(state, token):
    query, key, write, gate, start = token
    state = jnp.where(start[:, None, None, None], 0, state) * jnp.exp(gate)[:, :, None]
    state = state + (key[..., None] * write[..., None, :]).astype(state.dtype)
    return state, jnp.einsum("bhk,bhkm->bhm", query.astype(state.dtype), state)


def _chunk(state, tokens):
    """State [B,H,K,M] and C tokens [B,C,H,*] -> the state after them, out [B,C,H,M]."""
    query, key, write, gate = (jnp.swapaxes(x, 1, 2) for x in tokens[:-1])  # [B,H,C,*]
    start, dtype = tokens[-1], state.dtype
    multiply = partial(jnp.einsum, preferred_element_type=dtype)
    document = jnp.cumsum(start, axis=-1)[:, None]
    # no pair that counts crosses a start: keep its gate out of the sums
    total = jnp.cumsum(jnp.where(start[:, None, :, None], 0, gate), axis=-2)
    same = jnp.tri(query.shape[-2], dtype=bool) & (document[..., None] == document[..., None, :])
    pair = jnp.where(same, multiply("bhik,bhjk->bhij", query, key), 0)
    before = (document == 0)[..., None]
    out = _faded(pair, write.astype(dtype), total)
    out += jnp.where(before, jnp.exp(total) * multiply("bhik,bhkm->bhim", query.astype(dtype),
                                                       state), 0)
    last = (document == document[..., -1:])[..., None]
    end = total[..., -1:, :]
    kept = write * jnp.where(last, jnp.exp(end - total), 0)
    state = state * jnp.where(before[..., -1:, :], jnp.exp(end), 0)
    state += multiply("bhjk,bhjm->bhkm", key.astype(dtype), kept)
    return state, jnp.swapaxes(out, 1, 2)


def _faded(pair, write, total):
    """sum_j pair_ij write_jm exp(total_im - total_jm) for j <= i: [B,H,C,M].

    Blocks of 16 rows: earlier writes fade to the block's start and from there (each factor <= 1),
    as matmuls; those of the block itself pair by pair.
    """
    chunk, slots = write.shape[-2:]
    size = BLOCK if chunk % BLOCK == 0 else chunk
    blocks = chunk // size
    split = lambda x: x.reshape(*x.shape[:-2], blocks, size, x.shape[-1])
    totals, rows = split(total), split(pair)  # [B,H,N,c,M], [B,H,N,c,C]
    gap = totals[..., :, None, :] - totals[..., None, :, :]
    gap = jnp.where(jnp.tri(size, dtype=bool)[..., None], gap, 0)
    own = rows.reshape(*rows.shape[:-1], blocks, size)
    own = jnp.stack([own[..., n, :, n, :] for n in range(blocks)], -3)
    out = jnp.einsum("...ij,...jm,...ijm->...im", own, split(write), jnp.exp(gap))
    if blocks > 1:
        entry = jnp.roll(totals[..., -1:, :], 1, axis=-3).at[..., 0, :, :].set(0)
        earlier = (jnp.arange(chunk) < size * jnp.arange(blocks)[:, None])[..., None]
        gap = jnp.where(earlier, entry - total[..., None, :, :], 0)
        right = jnp.where(earlier, write[..., None, :, :] * jnp.exp(gap), 0)
        out += jnp.exp(totals - entry) * jnp.einsum("...ij,...jm->...im", rows, right)
    return out.reshape(*out.shape[:-3], chunk, slots)
