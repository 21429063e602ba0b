"""The linear recurrence as matmuls: chunks in parallel, a scan over their states (BWY/UT form).

With G_i the decay summed from the chunk's start, S the incoming state and e_i the row that the
erase of token i adds along w_i (r_i its `erase`, w_i its `write`: often one vector),
  S_i = exp(G_i) S + sum_{j<=i} exp(G_i - G_j) (k_j v_j^T + w_j e_j^T)
  e_i = -beta_i r_i^T (exp(G_i) S + sum_{j<i} exp(G_i - G_j) (k_j v_j^T + w_j e_j^T)),
so that the e of one chunk solve a unit lower triangular system whose matrix does not know S.
All of that is done for a span of chunks at once; only S -> e -> next S is sequential.
Where the write is beta w v^T (the delta rule), u = e + beta v takes the place of both sums.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lcx.ops.linear.decay import BLOCK, Decay
from lcx.ops.linear.inputs import Inputs
from lcx.ops.linear.triangular import unit_lower_inverse
from lcx.ops.linear.turning import Turning

# float32 elements of a span's largest tile: bounds memory at any length, and still fills a GPU
SPAN = {"cpu": 2**20}
SPAN_ELSEWHERE = 2**27


def chunked(inputs: Inputs, state: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Inputs [B,T,H,*] and state [B,H,K,V] -> out [B,T,H,V] and the next state (state.dtype)."""
    length = inputs.query.shape[1]
    chunk = min(chunk, -(-length // BLOCK) * BLOCK)
    if chunk > BLOCK:  # whole blocks, or the pairs of a chunk would be weighed one by one
        chunk = -(-chunk // BLOCK) * BLOCK
    chunks = -(-length // chunk)
    spans = -(-chunks // min(chunks, _chunks_at_once(inputs, chunk)))
    chunks = -(-chunks // spans)

    def split(x):  # [B,T,...] -> [spans, B, chunks, chunk, ...]; padding: no key, no decay
        pad = spans * chunks * chunk - length
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(x.shape[0], spans, chunks, chunk, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    body = jax.checkpoint(_span)  # the backward pass keeps one state per span, not the tiles
    parts = jax.tree.map(split, inputs)
    if spans == 1:
        state, out = body(state, jax.tree.map(lambda x: x[0], parts))
        out = out[None]
    else:
        state, out = jax.lax.scan(body, state, parts)
    out = jnp.moveaxis(out, 0, 1)
    out = out.reshape(out.shape[0], -1, *out.shape[4:])
    return out[:, :length], state


def _chunks_at_once(inputs: Inputs, chunk: int) -> int:
    batch, _, num_heads, head_dim = inputs.query.shape
    per_head = max(chunk * chunk, head_dim * inputs.value.shape[-1])
    channels = inputs.log_decay is not None and inputs.log_decay.shape[-1] > 1
    if channels or inputs.rotation is not None:
        per_head = max(per_head, chunk * BLOCK * head_dim)
    bound = SPAN.get(jax.default_backend(), SPAN_ELSEWHERE)
    return max(1, bound // (batch * num_heads * per_head))


def _span(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """State [B,H,K,V], inputs [B,N,C,H,*] -> state after N chunks, out [B,N,C,H,V]."""
    dtype = state.dtype
    operand = jnp.result_type(inputs.query, inputs.value)
    multiply = partial(jnp.einsum, preferred_element_type=dtype)

    def cast(x):  # what a matmul reads: bfloat16 inputs keep the tensor cores busy
        return x.astype(operand)

    def heads_first(x):
        return jnp.swapaxes(x, 2, 3)  # [B,N,C,H,*] -> [B,N,H,C,*]

    query, value = heads_first(inputs.query), heads_first(inputs.value)
    if inputs.rotation is None:
        decay = Decay.of_chunk(inputs.log_decay, inputs.start, query.shape, dtype)
    else:
        decay = Turning.of_chunk(inputs.log_decay, inputs.rotation, inputs.start, query.shape,
                                 dtype)
    attend = partial(multiply, "bnhij,bnhjv->bnhiv")
    key = erase = None
    write = out = 0.0
    if inputs.key is not None:
        key = heads_first(inputs.key)
        out = attend(cast(decay.product(query, key)), cast(value))
        write = multiply("bnhjk,bnhjv->bnhkv", cast(decay.to_end(key)), cast(value))
    if inputs.erase is None:
        state, before, _ = _scan_states(state, decay, write, None, None, None, operand)
    else:
        erase = heads_first(inputs.erase)
        along = erase if inputs.write is None else heads_first(inputs.write)
        beta = jnp.swapaxes(inputs.beta, 2, 3).astype(dtype)[..., None]
        inverse = unit_lower_inverse(beta * decay.product(erase, along, strict=True))
        inverse = cast(inverse * jnp.swapaxes(beta, -1, -2))
        if key is None:
            known = attend(inverse, cast(value))
        else:
            known = attend(cast(decay.product(erase, key, strict=True)), cast(value))
            known = -attend(inverse, cast(known))
        reads = multiply("bnhij,bnhjk->bnhik", inverse, cast(decay.from_start(erase)))
        ends = decay.to_end(along)
        state, before, row = _scan_states(
            state, decay, write, cast(reads), known, cast(ends), operand
        )
        out = out + attend(cast(decay.product(query, along)), cast(row))
    reads = cast(decay.from_start(query))
    out = out + multiply("bnhik,bnhkv->bnhiv", reads, cast(before))
    return state, heads_first(out)


def _scan_states(state, decay, write, reads, known, ends, operand):
    """The sequential part: state -> (state after, states before each chunk, erase rows).

    write [B,N,H,K,V] or 0; reads, ends [B,N,H,C,K]; known [B,N,H,C,V].
    """

    def step(state, chunk):
        across, write, reads, known, ends = chunk
        after = decay.carry(across, state) + (0.0 if write is None else write)
        row = None
        if reads is not None:
            row = known - jnp.einsum(
                "bhik,bhkv->bhiv",
                reads,
                state.astype(operand),
                preferred_element_type=state.dtype,
            )
            after = after + jnp.einsum(
                "bhik,bhiv->bhkv", ends, row.astype(operand), preferred_element_type=state.dtype
            )
        return after, (state, row)

    write = None if isinstance(write, float) else write
    chunks = decay.across, write, reads, known, ends
    chunks = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), chunks)
    state, outputs = jax.lax.scan(step, state, chunks)
    before, row = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outputs)
    return state, before, row
