"""mLSTM: a matrix memory with exponential input gates and a normaliser, the mixer of xLSTM-7B."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.layers import Dense, HeadNorm
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


class Mlstm(LinearMixer):
    """mLSTM layer of xLSTM-7B (arXiv:2405.04517, arXiv:2503.13427): [B,T,D] -> [B,T,D].

    h = (sum_j w_ij v_j) / max(|sum_j w_ij|, 1), w_ij = q_i.k_j / sqrt(K) e^(i_j) prod sigmoid(f);
    W_o (sigmoid(W_g x) * norm(h)), the norm a layer norm of each head. i and f are soft-capped:
    cap tanh((W x + b) / cap). A scheme's lanes act on the weights of numerator and normaliser
    alike; its gates add to log sigmoid(f).

    key_factor: width of all queries as a share of the layer's, values take all of it; cap: of the
    gates, 0 for none. Maps start normal with variance 2/(5 D); W of the gates at 0, b of i at -10,
    of f evenly from 3 to 6 over the heads. The first version of the block (an up-projection, a
    convolution) is not here.
    """

    num_heads: int = 4
    key_factor: float = 0.5
    cap: float = 15.0

    paper: ClassVar[str] = "arXiv:2405.04517"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, key_factor=1.0, cap=0.0))

    def site(self) -> L.Site:
        channels = int(self.width * self.key_factor)
        if self.width % self.num_heads or channels % self.num_heads or not channels:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width} and its "
                              f"share of the keys, {channels}")
        dim = channels // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=self.width // self.num_heads)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Any = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        site, heads = self.site(), self.num_heads
        small = nn.initializers.normal(math.sqrt(0.4 / self.width))
        dense = lambda size, axis, name: Dense((heads, size), ("heads", axis), init=small,
                                               name=name)(x)
        query = dense(site.key_dim, "head_dim", "query") * site.key_dim**-0.5
        key, value = dense(site.key_dim, "head_dim", "key"), dense(site.value_dim, "value_dim",
                                                                   "value")
        log_input = self._gate(x, "input_gate", nn.initializers.constant(-10.0))
        log_forget = nn.log_sigmoid(self._gate(x, "forget_gate", _three_to_six))
        lanes, carry = self.see(x, seq, None if state is None else state.core.carry, shared)
        out, state = self.remember(query, key, value, log_forget, log_input, seq, lanes, carry,
                                   state)
        out = HeadNorm(("heads", "value_dim"), eps=1e-6, name="norm")(out)
        out = out * nn.sigmoid(dense(site.value_dim, "value_dim", "gate"))
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

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

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> MlstmState:
        site = self.site()
        core = self.empty_state(batch, max_length, site.num_heads, site.value_dim + 1, dtype,
                                log_decay=True)
        return MlstmState(core, jnp.zeros((batch, site.num_heads), wide_dtype()),
                          L.nothing_seen(batch).segment)

    def _gate(self, x, name: str, bias) -> jax.Array:
        gate = wide(Dense((self.num_heads,), ("heads",), use_bias=True, bias_init=bias,
                          init=nn.initializers.zeros_init(), name=name)(x))
        return self.cap * jnp.tanh(gate / self.cap) if self.cap else gate


def _three_to_six(key, shape, dtype=jnp.float32):
    return jnp.linspace(3.0, 6.0, *shape).astype(dtype)
