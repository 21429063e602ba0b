"""Convolutions whose kernel is multiplied by static lanes: exp(bias), and fades of channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.integral import fallen, gap
from lcx.ops import pairs
from lcx.ops.conv import turned
from lcx.types import wide


def even_factor(lanes: L.Lanes, step: jax.Array, starts: jax.Array, shape: tuple[int, int, int]):
    """Whether the lanes are the same function of the distance at every token, and its exponent.

    step [.,T,A] of the ids and starts [.,T] of documents; shape (T,H,K). Returns a bool scalar and
    the log of the factor at distances 0..T-1 [T,H,1 or K]: it holds where each token of a document
    is the same step of ids, and the same gate, after the one before.
    """
    length, heads, size = shape
    place, even, total = wide(jnp.arange(length))[:, None], jnp.bool_(True), 0.0

    def alike(a):  # [.,T,...] -> whether all tokens but the first of a document agree, on what
        inside = ~starts.reshape(*starts.shape, *[1] * (a.ndim - 2))
        least = jnp.min(jnp.where(inside, a, jnp.inf), axis=(0, 1))
        most = jnp.max(jnp.where(inside, a, -jnp.inf), axis=(0, 1))
        none = ~jnp.any(inside)
        return none | jnp.all(least == most), jnp.where(none, 0.0, most)

    for bias in lanes.bias:
        if isinstance(bias, L.Separable):
            same, rate = alike(wide(bias.increment))
            total += (place * rate)[..., None]
        else:
            same, rate = alike(step[..., 0])
            total += wide(bias.kernel(bias.params, place[:, 0] * rate))[..., None]
        even &= same
    if isinstance(lanes.transport, L.Diagonal):
        same, rate = alike(channel_fade(lanes.transport, heads, size))
        total, even = total + place[..., None] * rate, even & same
    return even, jnp.broadcast_to(total, (length, heads, size))


def fade_of(lanes: L.Lanes, heads: int, size: int) -> jax.Array | None:
    """Log gates [.,T,H,1 or K] of all lanes that fade token by token; None where there is none."""
    fades = [wide(b.increment)[..., None] for b in lanes.bias if isinstance(b, L.Separable)]
    if isinstance(lanes.transport, L.Diagonal):
        fades.append(channel_fade(lanes.transport, heads, size))
    return sum(fades) if fades else None


def channel_fade(transport: L.Diagonal, heads: int, size: int) -> jax.Array:
    """Log gates [.,T,H,K] of every channel."""
    fade = pairs.repeat_heads(wide(transport.increment), heads)
    return jnp.pad(fade, [(0, 0)] * 3 + [(0, size - fade.shape[-1])])


def over_pairs(seq: L.Sequence, integral: pairs.Integrals, keys: pairs.Keys, taps: jax.Array,
               lanes: L.Lanes, turn: turned.Turn, chunk: int) -> jax.Array:
    """y_i = sum_j K(i - j) factor_ij R_{j-i} x_j [B,T,H,K], one chunk of i after another.

    keys.value [B,S,H,K] are raw inputs, keys.key is empty; taps [L,H,K], of all distances in
    arrival order; integral: of the gates at the tokens of `seq`.
    """
    batch, slots, heads, size = keys.value.shape

    def tile(tokens, first):
        seq, integral = tokens
        queries = pairs.Queries(jnp.zeros((1, 1, heads, 0)), seq, integral)
        allowed = pairs.mask(seq, keys.seq)  # [B,T,S]
        distance = seq.order[..., :, None] - keys.seq.order[..., None, :]
        weights = taps[jnp.clip(distance, 0, taps.shape[0] - 1)]  # [B,T,S,H,K]
        bias = pairs.log_bias(queries, keys, lanes.bias, allowed, 1.0)
        if bias is not None:
            bias = jnp.where(allowed[:, None], bias, 0.0)
            weights = weights * jnp.exp(jnp.moveaxis(bias, 1, -1))[..., None]
        if isinstance(lanes.transport, L.Diagonal):
            fade = gap(jax.tree.map(lambda a: a[:, :, None], integral.decay),
                       jax.tree.map(lambda a: a[:, None], keys.integral.decay))
            fade = jnp.repeat(fallen(fade), heads // fade.shape[-2], axis=-2)
            pad = [(0, 0)] * 4 + [(0, size - fade.shape[-1])]
            weights = weights * jnp.exp(jnp.pad(fade, pad))

        def convolve(inputs, mask=True):
            masked = jnp.where((allowed & mask)[..., None, None], weights, 0.0)[:, :, :, None]
            apart = inputs.reshape(batch, 1, slots, -1, heads, size)
            return jnp.sum(masked * apart, axis=2).reshape(batch, -1, inputs.shape[2], size)

        if isinstance(lanes.transport, L.Piecewise):
            return turned.pieces(lanes.transport, keys.value, keys.seq, seq, convolve)
        return turn.outputs(convolve(turn.inputs(keys.value, keys.seq.ids)), seq.ids)

    tokens = seq.replace(length=None), integral
    return pairs.over_queries(tile, tokens, chunk)
