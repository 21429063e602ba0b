"""What softmax attention does with each lane: everything has its literal meaning."""

from __future__ import annotations

import contextlib
from typing import Any

from flax import struct

from lcx import lanes as L
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support
from lcx.ops import pairs
from lcx.ops.attention import api, cache

_ALL = Support((QUADRATIC, CHUNKED, STEP))
SUPPORTS = {
    L.Rotation: _ALL,
    L.ContentRotation: _ALL,
    L.Diagonal: _ALL,
    L.FeatureMap: _ALL,
    L.Piecewise: _ALL,
    L.Householder: _ALL,
    L.Separable: _ALL,
    L.Toeplitz: _ALL,
    L.Rowwise: _ALL,
    L.Pairwise: _ALL,
    L.Temperature: _ALL,
    L.ValueRotation: _ALL,
    L.ValueTable: _ALL,
    L.LogitMap: _ALL,
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
               state: SoftmaxState | None, *, scale: float, **options):
        """Attention of this call's tokens to themselves and to the state's: [B,T,H,V], state.

        options: window, sinks, normaliser and pattern of the op.
        """
        keys, total, slot, state = self.remember(key, value, seq, lanes, carry, state)
        queries = pairs.Queries(query, seq, total, pairs.path_of(lanes.transport),
                                pairs.extras_of(lanes), slot)
        out = self.softmax(queries, keys, lanes, (key, value), scale=scale, **options)
        return out, state

    def remember(self, key, value, seq, lanes, carry, state):
        """All keys that this call may read, its own integrals, its first slot, the next state."""
        total = pairs.integrals(lanes, None if state is None else state.cache.total)
        keys = pairs.Keys(key, value, seq.replace(length=None), total,
                          pairs.path_of(lanes.transport), pairs.extras_of(lanes))
        if state is None:
            return keys, total, 0, None
        keys, slot, kept = state.cache.append(keys)
        return keys, total, slot, SoftmaxState(kept, carry)

    def softmax(self, queries, keys, lanes, own, *, scale: float, **options):
        """The op, in the form that was asked for; own: key and value of this call, for capture."""
        inner = dict(shown(options), query=queries.query, key=own[0], value=own[1], scale=scale,
                     rotary_dim=self.site().rotary_dim)
        self.sow("intermediates", "inner", self.named(core_of(options), inner))
        forced = self.form in _BACKEND
        with api.backend(_BACKEND[self.form]) if forced else contextlib.nullcontext():
            out = api.attend(queries, keys, lanes, rotary_dim=self.site().rotary_dim, scale=scale,
                             chunk=self.chunk, **options)
        self.sow("intermediates", "outer", out)
        return out

    def named(self, core: str, inner: dict) -> dict:
        """What a core was given, under its name where that is not the family's."""
        return inner if core == self.family else {"core": {core: inner}}

    def empty_state(self, batch: int, max_length: int, heads: int, key_dim: int, value_dim: int,
                    dtype, window: int | None = None,
                    value_heads: int | None = None) -> SoftmaxState:
        """A cache for `heads` key heads, shaped by what the scheme's lanes need to keep."""
        lanes, carry = self.structure(batch)
        like = cache.like(lanes, batch, heads, key_dim, value_dim, dtype, value_heads)
        return SoftmaxState(cache.init(like, batch, max_length, window), carry)


def core_of(options: dict[str, Any]) -> str:
    """The name of a core: that of its normaliser or pattern, if it has one."""
    found = [options.get(name) for name in ("normaliser", "pattern")]
    return next((option.core for option in found if option is not None), "softmax")


def shown(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a core with the numbers of its normaliser and pattern, for capture."""
    plain = {k: v for k, v in options.items() if k not in ("normaliser", "pattern")}
    for name in ("normaliser", "pattern"):
        plain |= vars(options[name]) if options.get(name) is not None else {}
    return plain
