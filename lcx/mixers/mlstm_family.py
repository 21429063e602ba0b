"""What mLSTM layers share: the memory with exponential input gates and its normaliser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.mixers import CHUNKED
from lcx.mixers.linear_family import KeysState, LinearMixer, MemoryState, RingState
from lcx.ops import pairs
from lcx.ops.attention import cache
from lcx.ops.linear import mlstm, quadratic, ring
from lcx.ops.scan.frame import frame_of
from lcx.types import wide, wide_dtype


@struct.dataclass
class MlstmState:
    """The linear core's state, the level [B,H] of its frame, segment [B] of the last token."""

    core: MemoryState | KeysState | RingState
    level: jax.Array
    segment: jax.Array


class MlstmMixer(LinearMixer):
    """Shared by mixers with h = (sum_j w_ij v_j) / max(|sum_j w_ij|, 1) (arXiv:2405.04517)."""

    def remember(self, query, key, value, log_forget, log_input, seq, lanes, carry, state):
        """The core: query (scaled), key [B,T,H,K], value [B,T,H,V], gates [B,T,H], wide -> h
        [B,T,H,V] and the next state."""
        self.sow("intermediates", "inner", {"core": {"mlstm": dict(
            query=query, key=key, value=value, log_forget=log_forget, log_input=log_input)}})
        last = L.nothing_seen(query.shape[0])
        last = last if state is None else last.replace(segment=state.segment)
        _, starts, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        fade = sum((wide(bias.increment) for bias in lanes.bias if isinstance(bias, L.Separable)),
                   0.0)
        frame = frame_of(log_forget + fade, log_input, start=starts,
                         before=None if state is None else state.level)
        core, decay = None if state is None else state.core, frame.decay - fade
        if self.over_pairs(lanes) and not (self.form == CHUNKED and state is None):
            sums, core = self._squared(query, key, value, frame, decay, seq, lanes, carry, core)
        else:
            run = self._over_memory
            if self.over_pairs(lanes):
                run = self._over_tree
            elif ring.reach(lanes) is not None:
                run = self._over_ring
            sums, core = run(query, key, mlstm.written(value, frame.write), seq, lanes, carry,
                             core, decay, None)
        out = mlstm.normalised(sums, frame.level).astype(value.dtype)
        self.sow("intermediates", "outer", out)
        if state is not None:
            state = MlstmState(core, frame.last.astype(state.level.dtype), last.segment)
        return out, state

    def _squared(self, query, key, value, frame, decay, seq, lanes, carry, state):
        """Over pairs the input gate is part of each key's log weight: biases read raw keys."""
        if lanes.value is not None and isinstance(lanes.value, L.ValueTable):
            table = lanes.value.table  # a pair's vector does not count
            lanes = lanes.replace(value=lanes.value.replace(
                table=jnp.pad(table, [(0, 0), (0, 1)])))
        lanes = self._gated(lanes, decay)
        path, extras = pairs.path_of(lanes.transport), pairs.extras_of(lanes)
        total = pairs.integrals(lanes, None if state is None else state.cache.total)
        bias = total.bias.replace(fine=total.bias.fine - frame.write)
        keys = pairs.Keys(key, mlstm.counted(value), seq.replace(length=None),
                          total.replace(bias=bias), path, extras)
        slot = 0
        if state is not None:
            keys, slot, kept = cache.append(state.cache, keys)
            newest = jax.tree.map(lambda a, old: a[:, -1].astype(old.dtype), total, kept.total)
            state = KeysState(kept.replace(total=newest), carry)
        out = quadratic.attend(pairs.Queries(query, seq, total, path, extras, slot), keys, lanes,
                               rotary_dim=self.site().rotary_dim, chunk=self.chunk)
        return out, state

    def empty_memory(self, batch: int, max_length: int, dtype) -> MlstmState:
        """The core before any token."""
        site = self.site()
        core = self.empty_state(batch, max_length, site.num_heads, site.value_dim + 1, dtype,
                                log_decay=True)
        return MlstmState(core, jnp.zeros((batch, site.num_heads), wide_dtype()),
                          L.nothing_seen(batch).segment)


def three_to_six(key, shape, dtype=jnp.float32):
    """Initial biases of the forget gates, evenly over the heads."""
    return jnp.linspace(3.0, 6.0, *shape).astype(dtype)
