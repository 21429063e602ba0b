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
    write: jax.Array | None = None,
    rotation: jax.Array | None = None,
    interleaved: bool = False,
    state: jax.Array | None = None,
    start: jax.Array | None = None,
    form: str = "chunked",
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Runs S_t = H_t D_t R_t S_{t-1} + k_t v_t^T, o_t = q_t^T S_t: turn, decay, erase, write.

    R_t turns channel pairs; D_t = diag(exp(log_decay_t)); H_t = I - beta_t w_t e_t^T with
    e = erase and w = write, which is e where it is not given. Special cases: retention, Lightning,
    SSD and simple GLA (arXiv 2312.06635) have a scalar log_decay; GLA a log_decay per channel;
    DeltaNet (arXiv 2406.06484) and gated DeltaNet (arXiv 2412.06464) have erase = k and
    key = beta * k, which key=None says without computing the product twice; KDA (arXiv 2510.26692)
    adds a per-channel decay; RWKV-7 (arXiv 2503.14456) has three different vectors. No scale, no
    feature map and no norm inside.

    Args:
      query, key, erase, write: [B,T,H,K]. Heads are already expanded. key=None writes
        beta * write. An erase that shall read the state before its decay is divided by it.
      value: [B,T,H,V].
      log_decay: [B,T,H], or [B,T,H,K] per channel; <= 0. Integrated inside a chunk, in at least
        float32. Anything below the log of the smallest normal number, -inf included, forgets all.
      rotation: [B,T,H,P] radians by which each token turns the state, of the leading 2P channels:
        "transport semantics" (rotate, then decay), which depend only on the tokens in between
        even where the two gates of a pair differ. Queries and keys stay as they are. RoPE by
        steps of an id turns the state by *minus* its angle. Where the gates of each pair are
        tied, turning query, key and erase by their own phases is the same, and cheaper.
      interleaved: pairs are the channels (2m, 2m + 1), else (m, m + P).
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
    _check_shapes(query, key, value, log_decay, erase, beta, write, rotation, state, start)
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if start is not None:
        start = jnp.broadcast_to(start, query.shape[:2])
    inputs = Inputs(query, key, value, log_decay, erase, beta, start, rotation, write)
    batch, length, num_heads, head_dim = query.shape
    dtype = inputs.state_dtype
    if state is None:
        state = jnp.zeros((batch, num_heads, head_dim, value.shape[-1]), dtype)
    else:
        state = state.astype(dtype)
    if length == 0:
        return value, state
    halves = rotation is not None and interleaved
    if halves:  # inside, a pair is (m, m + P)
        turned = 2 * rotation.shape[-1]
        inputs = inputs._replace(**{
            name: _halves(getattr(inputs, name), -1, turned)
            for name in ("query", "key", "erase", "write", "log_decay")})
        state = _halves(state, -2, turned)
    if form == "recurrent" or length == 1:
        out, state = recurrent(inputs, state)
    else:
        out, state = chunked(inputs, state, chunk)
    if halves:
        state = _interleave(state, turned)
    return out.astype(value.dtype), state


def _halves(x: jax.Array | None, axis: int, turned: int) -> jax.Array | None:
    """The first `turned` channels from pairs (2m, 2m + 1) to (m, m + P); a shared one stays."""
    if x is None or x.shape[axis] == 1:
        return x
    order = [*range(0, turned, 2), *range(1, turned, 2), *range(turned, x.shape[axis])]
    return jnp.take(x, jnp.array(order), axis=axis)


def _interleave(state: jax.Array, turned: int) -> jax.Array:
    """The inverse of `_halves` on the channels of a state [B,H,K,V]."""
    pairs = state[..., :turned, :].reshape(*state.shape[:-2], 2, turned // 2, state.shape[-1])
    pairs = jnp.swapaxes(pairs, -3, -2).reshape(*state.shape[:-2], turned, state.shape[-1])
    return jnp.concatenate([pairs, state[..., turned:, :]], -2)


def _check_shapes(query, key, value, log_decay, erase, beta, write, rotation, state,
                  start) -> None:
    if query.ndim != 4 or value.shape[:3] != query.shape[:3] or value.ndim != 4:
        raise ValueError(
            f"query {query.shape} and value {value.shape} must be [B,T,H,K] and [B,T,H,V] "
            "with the same B, T and H (repeat shared key heads before the call)"
        )
    batch, length, num_heads, head_dim = query.shape
    if (erase is None) != (beta is None):
        raise ValueError("erase and beta go together: pass both, or neither for plain attention")
    if (key is None or write is not None) and erase is None:
        raise ValueError("key=None means beta * erase: pass erase and beta, or pass a key; write "
                         "needs an erase too")
    heads = (batch, length, num_heads)
    expected = {
        "key": (key, [(*heads, head_dim)]),
        "erase": (erase, [(*heads, head_dim)]),
        "write": (write, [(*heads, head_dim)]),
        "beta": (beta, [heads]),
        "log_decay": (log_decay, [heads, (*heads, head_dim)]),
        "state": (state, [(batch, num_heads, head_dim, value.shape[-1])]),
        "start": (start, [(batch, length), (1, length)]),
    }
    for name, (array, shapes) in expected.items():
        if array is not None and array.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name} has shape {array.shape}; expected {wanted}")
    if rotation is not None and (rotation.ndim != 4 or rotation.shape[:3] != heads
                                 or 2 * rotation.shape[-1] > head_dim):
        raise ValueError(f"rotation has shape {rotation.shape}; expected {(*heads, 'P')} with 2P "
                         f"at most {head_dim}")
    if start is not None and start.dtype != jnp.bool_:
        raise ValueError(f"start is {start.dtype}; pass booleans, true at a segment's first token")
