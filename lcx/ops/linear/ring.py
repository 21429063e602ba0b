"""Linear attention whose near pairs are weighed one by one: a ring of raw keys, a delayed memory.

Biases that are constant from a distance on (T5), and rotations whose id map is one map from a
distance on (ReRoPE, Self-Extend), have a state of fixed size: the last tokens as they came, and one
memory of all that left the ring, to which every reader stands in the far relation. A chunk of any
size reads the ring, itself and the memory; then as many tokens leave the ring.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.integral import fallen, gap
from lcx.ops import endpoint, pairs, untied
from lcx.ops.attention import cache
from lcx.ops.linear import quadratic
from lcx.types import wide


@struct.dataclass
class Ring:
    """keys: the newest tokens, raw; memory [B,H,K,V] and total [B,H,K,1] (or None) of all older
    ones, wide, as they stood at the newest of those, `last`: its integrals, ids, segment and order
    [B,...] (order -1: there is none yet)."""

    keys: cache.KeyCache
    memory: jax.Array
    total: jax.Array | None
    last: tuple


def reach(lanes: L.Lanes) -> int | None:
    """Distance of ids from which all pairs are far; None where no lane tells near from far, or
    where there is no such distance."""
    turns = lanes.transport
    turns = turns.rotation if isinstance(turns, untied.Untied) else turns
    windows = [lane.window for lane in (turns, *lanes.bias)
               if isinstance(lane, (L.Piecewise, L.EventuallyConstant))]
    return max(1, *windows) if windows and None not in windows else None


def init(like: pairs.Keys, heads: int, dim: int, batch: int, window: int, totals: bool) -> Ring:
    """The state before any token; like: one token's keys [1 or B,1,...]; dim: K of the memory."""
    keys = cache.init(like, batch, window, window)
    zeros = lambda *shape: wide(jnp.zeros((batch, heads, *shape)))
    memory = zeros(dim, like.value.shape[-1])
    return Ring(keys, memory, zeros(like.key.shape[-1], 1) if totals else None,
                _last(jax.tree.map(lambda a: a[:, -1:], keys.keys)))


def attend(queries: pairs.Queries, keys: pairs.Keys, state: Ring, lanes: L.Lanes, *,
           rotary_dim: int, eps: float | None, chunk: int) -> tuple[jax.Array, Ring]:
    """As `quadratic.attend`, for tokens that continue a stream: out [B,T,H,V], next state.

    Pairs further apart than the ring in tokens must be so in ids (ids that grow by at least one a
    token): where they are not, the output is NaN; the quadratic form takes any ids.
    """
    window = reach(lanes)
    piece = lambda state, tokens: _piece(state, *tokens, lanes, rotary_dim, eps, window)
    segment = lambda seq: jnp.ones_like(seq.order) if seq.segment is None else seq.segment
    known = lambda x: x.replace(seq=x.seq.replace(segment=segment(x.seq), length=None))
    queries, keys = known(queries).replace(slot=None), known(keys)
    tokens = queries, keys.replace(value=endpoint.turn_values(keys.value, keys.seq, lanes.value))
    batch, length = queries.query.shape[:2]
    tokens = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), tokens)
    chunk, out = min(chunk, length), []
    whole = length // chunk * chunk

    def split(a):
        return jnp.moveaxis(a[:, :whole].reshape(batch, -1, chunk, *a.shape[2:]), 1, 0)

    if whole == chunk:
        state, first = piece(state, jax.tree.map(lambda a: a[:, :whole], tokens))
        out.append(first)
    else:
        state, first = jax.lax.scan(jax.checkpoint(piece), state, jax.tree.map(split, tokens))
        out.append(jnp.moveaxis(first, 0, 1).reshape(batch, whole, *first.shape[3:]))
    if whole < length:
        state, rest = piece(state, jax.tree.map(lambda a: a[:, whole:], tokens))
        out.append(rest)
    out = jnp.concatenate(out, 1)
    return endpoint.turn_values(out, queries.seq, lanes.value, sign=-1), state


def _piece(state: Ring, queries, new, lanes, rotary_dim, eps, window):
    """A few tokens: near pairs over the ring and themselves, far ones from the memory."""
    keys, slot, kept = cache.append(state.keys, new)
    keys = keys.replace(seq=keys.seq.replace(length=None))
    heads = queries.query.shape[2]
    out, total = quadratic.sums(queries.replace(slot=slot), keys, lanes, rotary_dim,
                                eps is not None)
    # far pairs
    integral, ids, segment, order = state.last
    distance = queries.seq.ids[..., 0] - ids[:, None, 0]
    reads = (queries.seq.segment == segment[:, None]) & (order >= 0)[:, None]
    near = jnp.any(reads & (distance < window), axis=1)
    factor = _fall(queries.integral.bias, integral.bias)  # [B,T,H] or 1
    for bias in lanes.bias:
        if isinstance(bias, L.EventuallyConstant):
            constant = bias.kernel(bias.params, jnp.where(reads, distance, float(window)))
            factor = factor * jnp.exp(wide(constant))
    factor = jnp.where(reads[..., None], factor, 0.0)
    mixed = isinstance(lanes.transport, untied.Untied)
    if mixed:
        far = untied.far_reads(queries.replace(slot=slot), keys, lanes.transport, ids)
    else:
        far = _mapped(queries, None, lanes.transport, rotary_dim)
        far = far * _channels(_fall(queries.integral.decay, integral.decay), heads, far.shape[-1])
    out += jnp.einsum("bthk,bhkv->bthv", far * factor[..., None], state.memory)
    if eps is not None:
        total += jnp.einsum("bthk,bhkv->bthv", wide(queries.query) * factor[..., None],
                            state.total)
        out = out / (total + eps)
    out = jnp.where(near[:, None, None, None], jnp.nan, out)
    # what leaves the ring joins the memory
    leaving = jax.tree.map(lambda a: a[:, : queries.query.shape[1]], keys)
    end = jax.tree.map(lambda a: a[:, -1:], leaving)
    stays = (segment == end.seq.segment[:, 0]) & (order >= 0) & (end.seq.order[:, 0] >= 0)
    joins = (leaving.seq.segment == end.seq.segment) & (leaving.seq.order >= 0)
    last = lambda fall: fall if isinstance(fall, float) else fall[:, 0]
    keep = jnp.where(stays[:, None], last(_fall(end.integral.bias, integral.bias)), 0.0)
    each = jnp.where(joins[..., None], _fall(end.integral.bias, leaving.integral.bias), 0.0)
    value = pairs.repeat_heads(leaving.value, heads)

    def join(memory, key, value):
        key = pairs.repeat_heads(wide(key), heads) * each[..., None]
        return keep[..., None, None] * memory + jnp.einsum("bthk,bthv->bhkv", key, wide(value))

    if mixed:
        key, across = untied.to_end(leaving, heads, lanes.transport, ids)
        memory = jnp.einsum("bhkl,bhlv->bhkv", across, state.memory)
    else:
        key = pairs.repeat_heads(_mapped(None, leaving, lanes.transport, rotary_dim), heads)
        key = key * _channels(_fall(end.integral.decay, leaving.integral.decay), heads,
                              key.shape[-1])
        across = _channels(_fall(end.integral.decay, integral.decay), heads, key.shape[-1])
        across = across if isinstance(across, float) else across[:, 0, :, :, None]
        memory = across * state.memory
    memory, total = join(memory, key, value), state.total
    if total is not None:
        total = join(total, leaving.key, jnp.ones_like(value[..., :1]))
    return Ring(kept, memory, total, _last(end)), out


def _last(end: pairs.Keys) -> tuple:
    """What is known of one token [B,1,...]."""
    first = lambda a: a[:, 0]
    seq = end.seq
    return jax.tree.map(first, end.integral), first(seq.ids), first(seq.segment), first(seq.order)


def _fall(later, earlier):
    """exp of the sum of gates between tokens [B,T,...] and [B,T,...] or one token [B,...]; 1.0
    where there are no gates. What lies the other way round means nothing, and is at most e."""
    if later is None:
        return 1.0
    if earlier.fine.ndim < later.fine.ndim:
        earlier = jax.tree.map(lambda a: a[:, None], earlier)
    return jnp.exp(fallen(gap(later, earlier)))


def _channels(fall, heads: int, dim: int):
    """Factors [B,T,N,K] of the leading channels -> [B,T,H,dim]."""
    if isinstance(fall, float):
        return fall
    fall = pairs.repeat_heads(fall, heads)
    spare = [(0, 0)] * 3 + [(0, dim - fall.shape[-1])]
    return jnp.pad(fall, spare, constant_values=1.0)


def _mapped(queries, keys, transport, rotary_dim: int) -> jax.Array:
    """Queries [B,T,H,K'] as they read the memory, or keys [B,T,N,K'] as they enter it; wide."""
    tokens = queries if keys is None else keys
    x = wide(tokens.query if keys is None else tokens.key)
    if isinstance(transport, L.Piecewise):
        rotation, (query_map, key_map) = transport.rotation, transport.pieces[transport.far]
        ids = (query_map if keys is None else key_map)(transport.params, tokens.seq.ids)
        x = endpoint.rotate(x, L.phase(rotation, ids), rotary_dim, rotation.interleaved)
        return endpoint.amplified(x, rotation) if keys is None else x
    if isinstance(transport, L.Diagonal):
        transport = transport.rotation
    if transport is None:
        return x
    queries = queries or pairs.Queries(keys.key, keys.seq, path=keys.path)
    keys = keys or pairs.Keys(queries.query, None, queries.seq, path=queries.path)
    mapped = endpoint.mapped(queries, keys, transport, rotary_dim)
    return wide(mapped[0] if tokens is queries else mapped[1])
