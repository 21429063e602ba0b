"""The mLSTM memory (arXiv:2405.04517): exponential input gates, in a frame that keeps them small.

  C_t = f_t C_{t-1} + e^i_t k_t v_t^T,  n_t = f_t n_{t-1} + e^i_t k_t,
  h_t = q_t^T C_t / (max(|q_t^T n_t|, 1) + eps e^m_t)

C and n are kept times e^-m (`lcx.ops.scan.frame`), in which the denominator reads
max(|q^T n|, e^-m) + eps, as in the published code: eps stays inside the frame. n is one more
column of C, so that one linear recurrence with gates <= 1 is all there is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx.ops.linear.api import linear_attention
from lcx.ops.scan.frame import frame_of
from lcx.types import wide, wide_dtype

EPS = 1e-6
LARGEST = 80.0  # exponent of the floor e^-m: beyond it h is 0 in float32 either way, but not NaN


@struct.dataclass
class MlstmMemory:
    """memory [B,H,K,V+1]: C and n times e^-level; level [B,H]. Both wide."""

    memory: jax.Array
    level: jax.Array


def mlstm(query: jax.Array, key: jax.Array, value: jax.Array, log_forget: jax.Array,
          log_input: jax.Array, *, state: MlstmMemory | None = None,
          start: jax.Array | None = None, form: str = "chunked", chunk: int = 64,
          eps: float = EPS) -> tuple[jax.Array, MlstmMemory]:
    """query (scaled), key [B,T,H,K], value [B,T,H,V], gates [B,T,H] -> h [B,T,H,V], next memory.

    start [B,T] bool: where a segment begins; form: "chunked" (matmuls), or "recurrent", the naive
    twin that carries C, n and m from token to token.
    """
    if state is None:
        state = init_mlstm(*query.shape[0::2], query.shape[-1], value.shape[-1])
    if form == "recurrent":
        return _recurrent(query, key, value, log_forget, log_input, state, start, eps)
    frame = frame_of(log_forget, log_input, before=state.level, start=start)
    sums, memory = linear_attention(query, key, written(value, frame.write),
                                    log_decay=frame.decay, state=state.memory, start=start,
                                    form=form, chunk=chunk)
    out = normalised(sums, frame.level, eps).astype(value.dtype)
    return out, MlstmMemory(memory, frame.last)


def init_mlstm(batch: int, heads: int, key_dim: int, value_dim: int) -> MlstmMemory:
    """Nothing remembered."""
    return MlstmMemory(jnp.zeros((batch, heads, key_dim, value_dim + 1), wide_dtype()),
                       jnp.zeros((batch, heads), wide_dtype()))


def counted(value: jax.Array) -> jax.Array:
    """Values [...,V] with a column of ones, whose sum is the normaliser: [...,V+1]."""
    return jnp.concatenate([value, jnp.ones_like(value[..., :1])], -1)


def written(value: jax.Array, log_write: jax.Array) -> jax.Array:
    """What the memory takes up: values with their column, times the input gate in the frame."""
    return (wide(counted(value)) * jnp.exp(log_write)[..., None]).astype(value.dtype)


def normalised(sums: jax.Array, level: jax.Array, eps: float = EPS) -> jax.Array:
    """Sums [B,T,H,V+1] in the frame of level [B,T,H] -> h [B,T,H,V], wide."""
    floor = jnp.exp(jnp.minimum(-level, LARGEST))
    sums = wide(sums)
    total = jnp.maximum(jnp.abs(sums[..., -1]), floor) + eps
    return sums[..., :-1] / total[..., None]


def _recurrent(query, key, value, log_forget, log_input, state, start, eps):
    if start is None:
        start = jnp.zeros((1, query.shape[1]), bool)

    def step(held, token):
        query, key, value, forget, write, start = token
        fresh = lambda a: jnp.where(start.reshape(-1, *[1] * (a.ndim - 1)), 0.0, a)
        memory, total, level = map(fresh, held)
        new = jax.lax.stop_gradient(jnp.maximum(forget + level, write))
        keep, take = jnp.exp(forget + (level - new)), jnp.exp(write - new)
        memory = keep[..., None, None] * memory + jnp.einsum("bh,bhk,bhv->bhkv", take, key, value)
        total = keep[..., None] * total + take[..., None] * key
        read, count = jnp.einsum("bhk,bhkv->bhv", query, memory), jnp.sum(query * total, -1)
        floor = jnp.exp(jnp.minimum(-new, LARGEST))
        out = read / (jnp.maximum(jnp.abs(count), floor) + eps)[..., None]
        return (memory, total, new), out

    tokens = [jnp.moveaxis(wide(a), 1, 0)
              for a in (query, key, value, log_forget, log_input)]
    tokens.append(jnp.moveaxis(jnp.broadcast_to(start, query.shape[:2]), 1, 0))
    held = (state.memory[..., :-1], state.memory[..., -1], state.level)
    (memory, total, level), out = jax.lax.scan(step, held, tuple(tokens))
    out = jnp.moveaxis(out, 0, 1).astype(value.dtype)
    return out, MlstmMemory(jnp.concatenate([memory, total[..., None]], -1), level)
