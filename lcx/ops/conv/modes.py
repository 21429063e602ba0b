"""Convolutions whose kernel is a sum of complex exponentials, and so has a state of fixed size."""

import jax
import jax.numpy as jnp
from flax import struct

from lcx.integral import fallen
from lcx.types import precise, wide


@struct.dataclass
class Modes:
    """K(s) = Re sum_n weight_n exp(s log_pole_n): arrays [...C,N], complex, Re log_pole < 0."""

    log_pole: jax.Array
    weight: jax.Array

    def taps(self, length: int) -> jax.Array:
        """K(0..length-1): [length,...C], recomputed in the backward pass."""
        return _taps(self, length)

    @property
    def scans(self) -> bool:
        """Its chunked form is as quick as a Fourier transform."""
        return True

    def run(self, x: jax.Array, **options) -> tuple[jax.Array, jax.Array]:
        """`mode_conv` with this kernel."""
        return mode_conv(self, x, **options)

    def state(self, batch: int) -> jax.Array:
        """No token seen: [B,...C,N,2]."""
        return jnp.zeros((batch, *self.weight.shape, 2), self.weight.real.dtype)


def mode_conv(
    modes: Modes,
    x: jax.Array,
    *,
    log_decay: jax.Array | None = None,
    start: jax.Array | None = None,
    state: jax.Array | None = None,
    form: str = "chunked",
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """h_t = exp(log_pole + log_decay_t) h_{t-1} + x_t per mode, y_t = Re sum_n weight_n h_tn.

    Args:
      modes: arrays [...C,N].
      x: [B,T,...C].
      log_decay: [B or 1,T,...] <= 0, broadcasts against x: a further fade at each token, excluded
        from the token's own weight.
      start: [B or 1,T] bool, true where a document starts: h is zeroed before that token.
      state: from the previous call, or `Modes.state`; None starts afresh.
      form: "chunked" (inside a chunk a sum over pairs, between chunks the modes) or "recurrent"
        (token by token, the naive twin).
      chunk: tokens of a chunk; never changes the result.

    Returns:
      y [B,T,...C] and the state [B,...C,N,2] after the last token, at least float32.

    Raises:
      ValueError: an unknown form, or a chunk of no tokens.
    """
    if form not in ("chunked", "recurrent") or chunk < 1:
        raise ValueError(f"form is {form!r}, chunk {chunk}: choose 'chunked' or 'recurrent', >= 1")
    batch, length = x.shape[:2]
    x = wide(x)
    state = modes.state(batch) if state is None else wide(state)
    state = jax.lax.complex(state[..., 0], state[..., 1])
    start = jnp.zeros((1, length), bool) if start is None else start
    fade = None if log_decay is None else wide(log_decay)
    if form == "recurrent" or length == 1:
        state, y = _recurrent(modes, state, (x, fade, start))
    else:
        whole = length // chunk * chunk
        cut = lambda a, b: jax.tree.map(lambda t: t[:, a:b], (x, fade, start))
        split = lambda t: jnp.moveaxis(t.reshape(t.shape[0], -1, chunk, *t.shape[2:]), 1, 0)
        piece = jax.checkpoint(lambda h, tokens: _piece(modes, h, tokens))
        parts = []
        if whole:
            state, y = jax.lax.scan(piece, state, jax.tree.map(split, cut(0, whole)))
            parts.append(jnp.moveaxis(y, 0, 1).reshape(batch, whole, *x.shape[2:]))
        if whole < length:
            state, y = piece(state, cut(whole, length))
            parts.append(y)
        y = jnp.concatenate(parts, axis=1) if parts else x
    return y, jnp.stack([state.real, state.imag], -1)


def _recurrent(modes, state, tokens):
    pole = jnp.exp(modes.log_pole)

    def step(state, token):
        x, fade, start = token
        keep = jnp.where(start.reshape(-1, *[1] * (x.ndim - 1)), 0.0, 1.0)
        keep = keep if fade is None else keep * jnp.exp(fade)
        state = keep[..., None] * pole * state + x[..., None]
        return state, jnp.sum(jnp.real(modes.weight * state), -1)

    state, y = jax.lax.scan(step, state, jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0), tokens))
    return state, jnp.moveaxis(y, 0, 1)


def _piece(modes, state, tokens):
    """One chunk: pairs of its own tokens, what came before through the modes."""
    x, fade, start = tokens
    length, channels = x.shape[1], x.ndim - 2
    place = jnp.arange(length)
    over = lambda a: a.reshape(*a.shape, *[1] * channels)  # a number for all channels
    document = jnp.cumsum(start, axis=1)  # 0: goes on from the state
    near = (place[:, None] >= place) & (document[:, :, None] == document[:, None])
    weights = modes.taps(length)[jnp.maximum(place[:, None] - place, 0)]
    weights = jnp.where(over(near), weights, 0.0)
    before, after = over(document == 0), over(document == document[:, -1:])
    before, after = wide(before), wide(after)
    if fade is not None:
        total = jnp.cumsum(jnp.where(over(start), 0.0, fade), axis=1)
        weights = weights * jnp.exp(fallen(total[:, :, None] - total[:, None]))
        before = before * jnp.exp(total)
        after = after * jnp.exp(total[:, -1:] - total)
    inner = jnp.sum(weights * x[:, None], axis=2)
    power = lambda count: jnp.exp(count.reshape(-1, *[1] * (channels + 1)) * modes.log_pole)
    read = jnp.real(precise("t...n,b...n->bt...", modes.weight * power(place + 1.0), state))
    last = before[:, -1, ..., None] * power(jnp.array([float(length)]))[0]
    state = last * state + precise("s...n,bs...->b...n", power(length - 1.0 - place), after * x)
    return state, inner + before * read


def _taps(modes, length):
    @jax.checkpoint
    def sums(modes):
        place = wide(jnp.arange(length)).reshape(-1, *[1] * modes.weight.ndim)
        return jnp.sum(jnp.real(modes.weight * jnp.exp(place * modes.log_pole)), -1)

    return sums(modes)
