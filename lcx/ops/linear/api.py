"""The one door to linear attention, the gated delta rule and everything between."""

import jax
import jax.numpy as jnp

from lcx.ops.linear.chunked import chunked
from lcx.ops.linear.inputs import Inputs
from lcx.ops.linear.reference import recurrent


def linear_attention(
    query: jax.Array,
    key: jax.Array | None,
    value: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    erase: jax.Array | None = None,
    beta: jax.Array | None = None,
    state: jax.Array | None = None,
    start: jax.Array | None = None,
    form: str = "chunked",
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Runs S_t = H_t D_t S_{t-1} + k_t v_t^T, o_t = q_t^T S_t: decay, then erase, then write.

    D_t = diag(exp(log_decay_t)); H_t = I - beta_t w_t w_t^T with w = erase. Special cases:
    retention, Lightning, SSD and simple GLA (arXiv 2312.06635) have a scalar log_decay; GLA a
    log_decay per channel; DeltaNet (arXiv 2406.06484) and gated DeltaNet (arXiv 2412.06464) have
    erase = k and key = beta * k, which key=None says without computing the product twice; KDA
    (arXiv 2510.26692) adds a per-channel decay. No scale, no feature map and no norm inside.

    Args:
      query, key, erase: [B,T,H,K]. Heads are already expanded. key=None writes beta * erase.
      value: [B,T,H,V].
      log_decay: [B,T,H], or [B,T,H,K] per channel; <= 0. Integrated inside a chunk, in at least
        float32. Anything below the log of the smallest normal number, -inf included, forgets all.
      beta: [B,T,H], the strength of the erase; needed with erase.
      state: [B,H,K,V], the S before the first token (zeros by default).
      start: [B,T] (or [1,T]) bool, true where a segment starts: S is zeroed before that token.
      form: "chunked" (matmuls, any T) or "recurrent" (token by token, the naive twin).
      chunk: tokens solved at once in the chunked form; never changes the result.

    Returns:
      out [B,T,H,V] in value.dtype, and the state after the last token, at least float32.

    Raises:
      ValueError: an unknown form, a shape that does not fit, or erase and beta not together.
    """
    if form not in ("chunked", "recurrent"):
        raise ValueError(f"form is {form!r}: choose 'chunked' or 'recurrent'")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: give at least one token")
    _check_shapes(query, key, value, log_decay, erase, beta, state, start)
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if start is not None:
        start = jnp.broadcast_to(start, query.shape[:2])
    inputs = Inputs(query, key, value, log_decay, erase, beta, start)
    batch, length, num_heads, head_dim = query.shape
    dtype = inputs.state_dtype
    if state is None:
        state = jnp.zeros((batch, num_heads, head_dim, value.shape[-1]), dtype)
    else:
        state = state.astype(dtype)
    if length == 0:
        return value, state
    if form == "recurrent" or length == 1:
        out, state = recurrent(inputs, state)
    else:
        out, state = chunked(inputs, state, chunk)
    return out.astype(value.dtype), state


def _check_shapes(query, key, value, log_decay, erase, beta, state, start) -> None:
    if query.ndim != 4 or value.shape[:3] != query.shape[:3] or value.ndim != 4:
        raise ValueError(
            f"query {query.shape} and value {value.shape} must be [B,T,H,K] and [B,T,H,V] "
            "with the same B, T and H (repeat shared key heads before the call)"
        )
    batch, length, num_heads, head_dim = query.shape
    if (erase is None) != (beta is None):
        raise ValueError("erase and beta go together: pass both, or neither for plain attention")
    if key is None and erase is None:
        raise ValueError("key=None means beta * erase: pass erase and beta, or pass a key")
    heads = (batch, length, num_heads)
    expected = {
        "key": (key, [(*heads, head_dim)]),
        "erase": (erase, [(*heads, head_dim)]),
        "beta": (beta, [heads]),
        "log_decay": (log_decay, [heads, (*heads, head_dim)]),
        "state": (state, [(batch, num_heads, head_dim, value.shape[-1])]),
        "start": (start, [(batch, length), (1, length)]),
    }
    for name, (array, shapes) in expected.items():
        if array is not None and array.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name} has shape {array.shape}; expected {wanted}")
    if start is not None and start.dtype != jnp.bool_:
        raise ValueError(f"start is {start.dtype}; pass booleans, true at a segment's first token")
