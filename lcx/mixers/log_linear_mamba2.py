"""Log-linear Mamba-2: the gate of Mamba-2, and a number of states that grows with log T."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import whole
from lcx.layers import Dense
from lcx.mixers.kernel_family import empty_cache, remember
from lcx.mixers.linear_family import SUPPORTS, MemoryState, channel_decay
from lcx.mixers.mamba2 import Mamba2, Mamba2State
from lcx.ops import conv, endpoint, pairs
from lcx.ops.attention import pointwise
from lcx.ops.linear.log_linear import level_of, log_linear_attention
from lcx.types import wide, wide_dtype
from lcx.weights import free


class LogLinearMamba2(Mamba2):
    """Mamba-2 under log-linear attention (arXiv:2506.04761): a weight for each level of the past.

    w_ij = exp(c_i - c_j) lambda_i[bit_length(i xor j)] q_i.k_j, i and j counted from the start of
    the document: the past in aligned blocks that double with the distance, each with a state of its
    own, weighed by lambda = softplus(rate * W x) per token, head and level. All else is `mamba2`.

    levels: weights per head, for documents of up to 2^(levels - 1) tokens; NaN beyond. A level
    that training never reaches keeps its first weight, softplus(W x). rate starts at 1.
    """

    levels: Annotated[int, whole(1, 31)] = 16

    supports = SUPPORTS
    paper: ClassVar[str] = "arXiv:2506.04761"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=8, levels=6), dict(state_dim=12, head_dim=6, num_groups=2, levels=7))

    def recall(self, x, query, key, value, seq, lanes, carry, state, *, log_decay):
        """The core: as `mix`, with a weight for each level."""
        heads = self.num_heads
        rate = self.param("level_rate", free(
            nn.initializers.ones_init(), ("heads", None)), (heads, self.levels))
        level = Dense((heads, self.levels), ("heads", None), name="level")(x)
        level = nn.softplus(wide(level) * rate)
        return self.weighed(query, key, value, level, seq, lanes, carry, state, log_decay)

    def weighed(self, query: jax.Array, key: jax.Array, value: jax.Array, level: jax.Array,
                seq: L.Sequence, lanes: L.Lanes, carry: Any, state: Any, log_decay: jax.Array):
        """query [B,T,H,K], key [B,T,N,K], value [B,T,H,V], level [B,T,H,levels] -> as `mix`."""
        self.sow("intermediates", "inner", {"core": {"log_linear": dict(
            query=query, key=key, value=value, level=level, log_decay=log_decay,
            index=seq.index)}})
        L.served(seq, 1 << (self.levels - 1), f"a ladder of {self.levels} levels")
        run = self._levels_over_pairs if self.over_pairs(lanes) else self._levels_over_memory
        out, state = run(query, key, value, level, seq, lanes, carry, state, log_decay)
        out = out.astype(value.dtype)
        self.sow("intermediates", "outer", out)
        return out, state

    def _levels_over_memory(self, query, key, value, level, seq, lanes, carry, state, log_decay):
        last = L.nothing_seen(query.shape[0])
        last = last if state is None else last.replace(segment=state.segment)
        _, start, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        gates = sum((wide(bias.increment) for bias in lanes.bias), wide(log_decay))
        options = dict(start=start, form="recurrent" if self.form == "step" else "chunked",
                       log_decay=jnp.broadcast_to(gates, query.shape[:3]))
        if self.chunk is not None:
            options["chunk"] = self.chunk
        repeated = lambda a: pairs.repeat_heads(a, query.shape[2])
        transport, query, key = endpoint.in_basis(lanes.transport, query, key)
        if isinstance(transport, L.Diagonal):
            options["log_decay"] = channel_decay(options["log_decay"], transport, query)
            transport = transport.rotation
        if isinstance(transport, L.Householder):
            fits = lambda a: jnp.broadcast_to(repeated(a), (query.shape[0], *repeated(a).shape[1:]))
            options |= dict(erase=fits(transport.vector), beta=fits(transport.beta))
        elif transport is not None:
            token = pairs.path_of(transport)
            query, key = endpoint.mapped(
                pairs.Queries(query, seq, path=token), pairs.Keys(key, value, seq, path=token),
                transport, self.site().rotary_dim)
        content = endpoint.turn_values(value, seq, lanes.value)
        out, memory = log_linear_attention(
            query, repeated(key), content, level, seq.index,
            state=None if state is None else jnp.swapaxes(state.memory, 0, 1), **options)
        out = endpoint.turn_values(out, seq, lanes.value, sign=-1)
        if state is not None:
            memory = jnp.swapaxes(memory, 0, 1).astype(state.memory.dtype)
            state = MemoryState(memory, None, last.segment, carry)
        return out, state

    def _levels_over_pairs(self, query, key, value, level, seq, lanes, carry, state, log_decay):
        gate = L.Separable(jnp.broadcast_to(log_decay, query.shape[:3]))
        lanes = lanes.replace(bias=(*lanes.bias, gate), temperature=None)
        queries, keys, state = remember(query, key, value, seq, lanes, carry, state)
        out = pointwise.attend(queries, keys, lanes, _weigh, rows=level, chunk=self.chunk,
                               rotary_dim=self.site().rotary_dim)
        served = (seq.index < 1 << (self.levels - 1))[..., None, None]
        return jnp.where(served, out, jnp.nan), state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Mamba2State:
        site = self.site()
        sizes = (site.num_heads * site.value_dim, *[self.num_groups * self.state_dim] * 2)
        tails = tuple(conv.init_state(batch, self.window, size, dtype) for size in sizes)
        lanes, carry = self.structure(batch)
        if self.over_pairs(lanes):
            gate = L.Separable(jax.ShapeDtypeStruct((1, 1, site.num_heads), wide_dtype()))
            lanes = lanes.replace(bias=(*lanes.bias, gate))
            return Mamba2State(tails, empty_cache(lanes, carry, site, batch, max_length,
                                                  site.value_dim, dtype, site.num_heads))
        shape = (batch, self.levels - 1, site.num_heads,
                 endpoint.mapped_dim(lanes.transport, site), site.value_dim)
        return Mamba2State(tails, MemoryState(jnp.zeros(shape, wide_dtype()), None,
                                              L.nothing_seen(batch).segment, carry))


def _weigh(z, bias, queries, keys, level):
    number = level_of(queries.index, keys.index, level.shape[-1] - 1)[:, None]
    level = jnp.swapaxes(level, 1, 2)
    number = jnp.broadcast_to(number, (*level.shape[:3], number.shape[-1]))
    return z * jnp.exp(bias) * jnp.take_along_axis(level, number, -1)
