"""What softmax attention does with each lane: everything has its literal meaning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support
from lcx.ops import pairs
from lcx.ops.attention import api, cache

_ALL = Support((QUADRATIC, CHUNKED, STEP))
SUPPORTS = {
    L.Rotation: _ALL,
    L.Piecewise: _ALL,
    L.Householder: _ALL,
    L.Separable: _ALL,
    L.Toeplitz: _ALL,
    L.Pairwise: _ALL,
    L.Temperature: _ALL,
}
_BACKEND = {QUADRATIC: "reference", CHUNKED: "chunked"}


@struct.dataclass
class SoftmaxState:
    """Raw keys of the stream, and what the scheme remembers."""

    cache: cache.KeyCache
    carry: object


class SoftmaxMixer(Mixer):
    """Shared by mixers that end in one softmax attention over a cache of raw keys."""

    family = "softmax"
    supports = SUPPORTS

    def attend(self, query, key, value, seq: L.Sequence, lanes: L.Lanes, carry,
               state: SoftmaxState | None, *, scale: float, window: int | None = None):
        """Attention of this call's tokens to themselves and to the state's: [B,T,H,V], state."""
        path = lanes.transport if isinstance(lanes.transport, L.Householder) else None
        total = pairs.integral(lanes.bias, None if state is None else state.cache.total)
        keys = pairs.Keys(key, value, seq.replace(length=None), total, path)
        slot = 0
        if state is not None:
            keys, slot, kept = cache.append(state.cache, keys)
            state = SoftmaxState(kept, carry)
        queries = pairs.Queries(query, seq, total, slot)
        options = dict(rotary_dim=self.site().rotary_dim, scale=scale, window=window)
        self.sow("intermediates", "inner", dict(query=query, key=key, value=value, scale=scale,
                                          window=window))
        if self.form == "auto":
            out = api.attend(queries, keys, lanes, **options)
        else:
            with api.backend(_BACKEND[self.form]):
                out = api.attend(queries, keys, lanes, **options)
        self.sow("intermediates", "outer", out)
        return out, state

    def empty_state(self, batch: int, max_length: int, heads: int, key_dim: int, value_dim: int,
                    dtype, window: int | None = None) -> SoftmaxState:
        """A cache for `heads` key heads, shaped by what the scheme's lanes need to keep."""
        lanes, carry = self.structure(batch)
        zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
        path = lanes.transport if isinstance(lanes.transport, L.Householder) else None
        axes = 1 + max(getattr(lanes.transport, "axis", None) or (0,))  # of the ids that are read
        like = pairs.Keys(
            jnp.zeros((batch, 1, heads, key_dim), dtype),
            jnp.zeros((batch, 1, heads, value_dim), dtype),
            L.sequence(1, 1, ids=jnp.zeros((1, 1, axes))), pairs.integral(zeros(lanes.bias)), zeros(path))
        return SoftmaxState(cache.init(like, batch, max_length, window), carry)
