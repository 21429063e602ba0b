"""A linear memory whose columns forget apart: what a few slots hold of all keys.

S_t = T_t S_{t-1} diag(exp(gate_t)) + k_t w_t^T, read by q_t: out_tm = sum_{j<=t} <q_t, T_t ..
T_{j+1} k_j> w_jm exp(sum of gate_m after j), the transpose of a memory whose rows forget
(`linear_attention` with a gate per channel), for which the products of q and k come before the
decay and not after it. T fades the rows (`fade`) or reflects them (`erase`, `beta`).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lcx.integral import Integral, fallen, gap
from lcx.ops.householder import householder_scores
from lcx.ops.linear.decay import Decay, floored

BLOCK = 16  # pairs inside a block are weighed one by one, all others by matmul


class _Tokens(NamedTuple):
    """[B,T,...]: see `slot_memory`."""

    query: jax.Array
    key: jax.Array
    write: jax.Array
    gate: jax.Array
    start: jax.Array
    fade: jax.Array | None
    erase: jax.Array | None
    beta: jax.Array | None


def slot_memory(query: jax.Array, key: jax.Array, write: jax.Array, gate: jax.Array, *,
                fade: jax.Array | None = None, erase: jax.Array | None = None,
                beta: jax.Array | None = None, state: jax.Array | None = None,
                start: jax.Array | None = None, form: str = "chunked",
                chunk: int = 64) -> tuple[jax.Array, jax.Array]:
    """query, key [B,T,H,K], write and log gate <= 0 [B,T,H,M] -> out [B,T,H,M], state [B,H,K,M].

    fade [B,T,H,K] log gates <= 0 of the rows; erase [B,T,H,K] and beta [B,T,H]: T = I - beta e e^T,
    not beside fade. start [B or 1,T] bool, true where a segment starts: S is zeroed before that
    token. form: "chunked" (matmuls) or "recurrent" (token by token, the naive twin). Both results
    are at least float32. Raises ValueError on an unknown form, or on fade and erase together.
    """
    if form not in ("chunked", "recurrent"):
        raise ValueError(f"form is {form!r}: choose 'chunked' or 'recurrent'")
    if fade is not None and erase is not None or (erase is None) != (beta is None):
        raise ValueError("rows fade or are reflected: give fade, or erase with beta, or neither")
    batch, length, heads, size = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    if state is None:
        state = jnp.zeros((batch, heads, size, write.shape[-1]), dtype)
    if start is None:
        start = jnp.zeros((1, 1), bool)
    start = jnp.broadcast_to(start, (batch, length))
    fade = None if fade is None else floored(fade.astype(dtype))
    tokens = _Tokens(query, key, write, floored(gate.astype(dtype)), start, fade, erase, beta)
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


def _step(state, token: _Tokens):
    wide = lambda x: x.astype(state.dtype)
    state = jnp.where(token.start[:, None, None, None], 0, state) * jnp.exp(token.gate)[:, :, None]
    if token.fade is not None:
        state = jnp.exp(token.fade)[..., None] * state
    if token.erase is not None:
        erased = jnp.einsum("bhk,bhkm->bhm", wide(token.erase), state)
        state = state - (wide(token.beta)[..., None] * wide(token.erase))[..., None] * erased[
            :, :, None]
    state = state + wide(token.key[..., None] * token.write[..., None, :])
    return state, jnp.einsum("bhk,bhkm->bhm", wide(token.query), state)


def _chunk(state, tokens: _Tokens):
    """State [B,H,K,M] and C tokens [B,C,H,*] -> the state after them, out [B,C,H,M]."""
    dtype = state.dtype
    multiply = partial(jnp.einsum, preferred_element_type=dtype)
    write, gate = (jnp.swapaxes(x, 1, 2).astype(dtype) for x in (tokens.write, tokens.gate))
    # no pair that counts crosses a start: keep its gate out of the sums
    total = jnp.cumsum(jnp.where(tokens.start[:, None, :, None], 0, gate), axis=-2)
    end = total[..., -1:, :]
    pair, reads, ends, carry = _met(tokens, dtype)
    out = _faded(pair, write, total)
    out += jnp.exp(total) * multiply("bhik,bhkm->bhim", reads, state)
    kept = write * jnp.exp(end - total)
    state = carry(state) * jnp.exp(end) + multiply("bhjk,bhjm->bhkm", ends, kept)
    return state, jnp.swapaxes(out, 1, 2)


def _met(tokens: _Tokens, dtype):
    """Products of queries and earlier keys [B,H,C,C]; queries as they meet the chunk's incoming
    state and keys as its outgoing one holds them [B,H,C,K]; what becomes of that state."""
    query, key = (jnp.swapaxes(x, 1, 2)[:, None] for x in (tokens.query, tokens.key))
    several = lambda x: None if x is None else x[:, None]
    decay = Decay.of_chunk(several(tokens.fade), several(tokens.start), query.shape, dtype)
    across = decay.across[:, 0]
    if tokens.erase is None:
        return (decay.product(query, key)[:, 0], decay.from_start(query)[:, 0],
                decay.to_end(key)[:, 0], lambda state: across * state)
    # unit vectors before and behind the chunk, which reflect nothing, show what it does to any
    size, batch, heads = query.shape[-1], len(query), query.shape[2]
    units = jnp.broadcast_to(jnp.eye(size, dtype=dtype)[:, None], (batch, size, heads, size))
    framed = lambda x, ends: jnp.concatenate([ends, x.astype(dtype), ends], 1)
    still = units[..., :1] * 0
    scores = householder_scores(
        framed(tokens.query, units), framed(tokens.key, units), framed(tokens.erase, units * 0),
        framed(tokens.beta[..., None], still)[..., 0], block=tokens.query.shape[1])
    inside, last = slice(size, -size), slice(-size, None)
    masked = decay.product(jnp.ones_like(query[..., :1]), jnp.ones_like(key[..., :1]))[:, 0]
    whole = scores[:, :, last, :size] * across  # [B,H,K,K]
    return (scores[:, :, inside, inside] * masked,
            decay.from_start(scores[:, None, :, inside, :size])[:, 0],
            decay.to_end(jnp.swapaxes(scores[:, :, last, inside], -1, -2)[:, None])[:, 0],
            lambda state: jnp.einsum("bhkl,bhlm->bhkm", whole, state))


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
    fall = totals[..., :, None, :] - totals[..., None, :, :]
    fall = jnp.where(jnp.tri(size, dtype=bool)[..., None], fall, 0)
    own = rows.reshape(*rows.shape[:-1], blocks, size)
    own = jnp.stack([own[..., n, :, n, :] for n in range(blocks)], -3)
    out = jnp.einsum("...ij,...jm,...ijm->...im", own, split(write), jnp.exp(fall))
    if blocks > 1:
        entry = jnp.roll(totals[..., -1:, :], 1, axis=-3).at[..., 0, :, :].set(0)
        earlier = (jnp.arange(chunk) < size * jnp.arange(blocks)[:, None])[..., None]
        fall = jnp.where(earlier, entry - total[..., None, :, :], 0)
        right = jnp.where(earlier, write[..., None, :, :] * jnp.exp(fall), 0)
        out += jnp.exp(totals - entry) * jnp.einsum("...ij,...jm->...im", rows, right)
    return out.reshape(*out.shape[:-3], chunk, slots)


def faded_sums(pair: jax.Array, write: jax.Array, query_gate: Integral, key_gate: Integral, *,
               offset: int | jax.Array = 0) -> jax.Array:
    """sum_j pair_ij write_jm exp(G_im - G_jm): what slots hold of keys weighed pair by pair.

    pair [B,H,T,S], 0 where i may not read j; write [B,S,H,M]; integrals of the slots' log gates
    [B,T,H,M] and [B,S,H,M]; offset: the key slot of the first query, may be traced. -> [B,T,H,M].
    Earlier keys by matmul, those of a block's own tokens one by one, as in `decayed_scores`.
    """
    length, slots = pair.shape[2:]
    blocks = -(-length // BLOCK)

    def split(x, axis):  # the axis of T -> two, blocks of BLOCK
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, blocks * BLOCK - length)
        x = jnp.pad(x, pad, mode="edge")
        return x.reshape(*x.shape[:axis], blocks, BLOCK, *x.shape[axis + 1:])

    fall = lambda a, b: jnp.exp(fallen(gap(a, b)))
    at = lambda integral, index: jax.tree.map(lambda a: a[index], integral)
    every = slice(None)
    pair, gate = split(pair, 2), jax.tree.map(lambda a: split(a, 1), query_gate)
    entry = at(gate, (every, every, slice(0, 1)))  # [B,n,1,H,M]
    own = offset + jnp.arange(blocks)[:, None] * BLOCK + jnp.arange(BLOCK)  # slots [n,BLOCK]
    earlier = jnp.arange(slots) < own[:, :1]  # [n,S]
    right = write[:, None] * fall(entry, at(key_gate, (every, None)))
    out = fall(gate, entry) * jnp.einsum(
        "bhncs,bnshm->bnchm", jnp.where(earlier[:, None], pair, 0.0), right)
    near = jnp.minimum(own, slots - 1)
    index = jnp.broadcast_to(near[:, None], (*pair.shape[:4], BLOCK))
    ours = jnp.where((own < slots)[:, None], jnp.take_along_axis(pair, index, -1), 0.0)
    passed = fall(at(gate, (every, every, every, None)),
                  at(at(key_gate, (every, near)), (every, every, None)))
    out += jnp.einsum("bhncd,bndhm,bncdhm->bnchm", ours, write[:, near], passed)
    return out.reshape(len(out), blocks * BLOCK, *out.shape[3:])[:, :length]
