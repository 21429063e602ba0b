"""What the delta rule does with each lane: transports enter the transition before the erase.

S_t = (I - beta_t k_t k_t^T) D_t T_t S_{t-1} + beta_t k_t v_t^T, o_t = q_t^T S_t: the scheme's T_t,
then the mixer's own gate D_t, then the erase. An orthogonal T_t is the same as turning q and k (the
erase key included) by their own phases where D_t fades the channels of a pair alike; where it does
not, the memory itself is turned.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import expanded
from lcx.errors import ConfigError
from lcx.layers import Dense, ShortConv
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support, refuses
from lcx.mixers.linear_family import channel_decay
from lcx.ops import conv, endpoint, pairs
from lcx.ops.linear import linear_attention
from lcx.types import wide, wide_dtype

_ALL = Support((QUADRATIC, CHUNKED, STEP))
_ERASE = refuses("R3", "a factor on the weights of pairs is definable, but the erase would then "
                 "act on a memory that is not the one read: no longer a delta rule")
SUPPORTS = {
    L.Rotation: _ALL,
    L.ContentRotation: _ALL,
    L.Diagonal: _ALL,
    L.FeatureMap: refuses("R3", "a map of the endpoints that is no group of orthogonal maps is not "
                          "a transition that the memory could take before the erase"),
    L.Householder: _ALL,
    L.ValueRotation: _ALL,
    L.ValueTable: _ERASE,
    L.Rowwise: _ERASE,
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
    L.Separable: _ALL,
    L.Temperature: Support((QUADRATIC, CHUNKED, STEP), code="R4", reason=(
        "a factor of a query's whole output cancels in the scale-free output norm")),
    L.Toeplitz: _ERASE,  # EventuallyConstant with it
    L.Pairwise: _ERASE,
    L.Piecewise: refuses("R3", "a rotation that depends on the pair has no transition that the "
                         "memory could take before the erase"),
}

_VECTORS = ("erase", "write", "key")
_FORGOTTEN = -60.0  # below this log gate a memory is gone, and 1/gate still is a float32


@struct.dataclass
class DeltaState:
    """Memory [B,H,K,V] wide; the inputs that the short convolution still reads; ids and segment of
    the last token; what the scheme remembers."""

    memory: jax.Array
    conv: conv.ConvState
    last: L.Last
    carry: Any


class DeltaMixer(Mixer):
    """Shared by mixers whose core is a delta rule."""

    family = "delta"
    supports = SUPPORTS

    def head_sizes(self, head_dim: int | None, expand_v: float) -> tuple[int, int]:
        """K (width/num_heads if None) and V of a head."""
        if head_dim is None and self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = head_dim or self.width // self.num_heads
        return dim, expanded(dim, expand_v)

    def convolved(self, x: jax.Array, seq: L.Sequence, state: DeltaState | None, window: int,
                  *sizes: int) -> tuple[list[jax.Array], conv.ConvState | None]:
        """SiLU of a short convolution of projections of x: [B,T,H,size] each, and the tail."""
        heads = self.site().num_heads
        hidden = Dense((heads, sum(sizes)), ("heads", "head_dim"), name="qkv")(x)
        # heads stay whole in the flat channels, so that a mesh splits both alike
        flat, tail = ShortConv(window, name="conv")(
            hidden.reshape(*x.shape[:2], -1), seq, None if state is None else state.conv)
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
        return jnp.split(nn.silu(flat).reshape(hidden.shape), ends, -1), tail

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array, x: jax.Array,
            seq: L.Sequence, state: DeltaState | None, shared: L.Lanes | None,
            tail: conv.ConvState | None, *, beta: jax.Array, log_decay: jax.Array | None = None,
            erase: jax.Array | None = None, write: jax.Array | None = None,
            undecayed: bool = False):
        """query (scaled), key (unit) [B,T,H,K], value [B,T,H,V], beta [B,T,H]; log_decay (<= 0)
        [B,T,H], [B,T,H,K] or None. Several writes of a token: key, value, beta [B,T,N,H,...].

        erase [B,T,H,K]: what the erase reads, in place of the key; with write [B,T,H,K], along
        what it acts, the key and value are added beside it and without beta. undecayed: the erase
        reads the memory before the mixer's own gate (after all that the scheme does to it).

        x: the input of the layer, which the scheme sees; tail: of the convolution. Returns out
        [B,T,H,V] in the dtype of x and the next state.
        """
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        narrow = lambda a: None if a is None else a.astype(x.dtype)
        query, key, erase, write = map(narrow, (query, key, erase, write))
        self.sow("intermediates", "inner", dict(
            query=query, key=key, value=value, beta=beta, log_decay=log_decay, erase=erase,
            write=write, undecayed=undecayed))
        seen = lambda a: None if a is None else endpoint.in_basis(lanes.transport, a)[1]
        query, key, erase, write = map(seen, (query, key, erase, write))
        lanes = lanes.replace(transport=endpoint.in_basis(lanes.transport)[0])
        if undecayed:
            log_decay = jnp.maximum(log_decay, _FORGOTTEN)
            gate = jnp.exp(-log_decay)
            erase = narrow(erase * (gate if gate.ndim == 4 else gate[..., None]))
        memory = None if state is None else state.memory
        last = L.nothing_seen(len(x), lanes.axes) if state is None else state.last
        step, starts, last = L.advance(
            seq.replace(ids=jnp.broadcast_to(seq.ids[..., : lanes.axes],
                                             (*seq.ids.shape[:2], lanes.axes))), last)
        if seq.segment is None and state is None:
            starts = None
        if beta.ndim == 3:
            vectors = [_roles(key, erase, write)]
            value, beta = value[:, :, None], beta[:, :, None]
        else:
            vectors = [_roles(key[:, :, n], None, None) for n in range(key.shape[2])]
        writes = [dict(vectors[n], value=value[:, :, n], beta=beta[:, :, n], log_decay=None)
                  for n in range(len(vectors))]
        writes[0]["log_decay"] = log_decay if log_decay is None else wide(log_decay)
        out, memory = self._recur(query, writes, seq, lanes, memory, step, starts)
        self.sow("intermediates", "outer", out)
        if state is not None:
            state = DeltaState(memory.astype(wide_dtype()), tail, last, carry)
        return out, state

    def _recur(self, query, writes, seq, lanes, memory, step, starts):
        transport, turning = lanes.transport, {}
        fade = [wide(bias.increment) for bias in lanes.bias]
        fade = sum(fade) if fade else None  # the scheme's own
        if isinstance(transport, L.Diagonal):
            fade = channel_decay(fade, transport, query)
            transport = transport.rotation
        if isinstance(transport, endpoint.TRANSPORTS):
            gate = writes[0]["log_decay"]
            if gate is not None and gate.ndim == 4:
                query, turning = _turned_memory(query, transport, step)
            else:
                query, writes = self._turned_ends(query, writes, seq, transport)
        steps = [dict(w, value=endpoint.turn_values(w["value"], seq, lanes.value)) for w in writes]
        if isinstance(transport, L.Householder):  # a token before: I - beta w w^T, and no write
            steps.insert(0, _reflection(transport, steps[0]))
        steps[0]["log_decay"] = _sum(fade, steps[0]["log_decay"])
        rows, many = _woven(query, steps, starts, turning), len(steps)
        size = many * query.shape[1] if self.form == QUADRATIC else self.chunk
        chunk = {} if size is None else dict(chunk=size)
        out, memory = linear_attention(
            rows.pop("query"), rows.pop("key", None), rows.pop("value"), state=memory, **rows,
            **chunk, form="recurrent" if self.form == STEP else "chunked")
        return endpoint.turn_values(out[:, many - 1 :: many], seq, lanes.value, sign=-1), memory

    def _turned_ends(self, query, writes, seq, transport):
        """The query and the vectors of each write by the token's own phase."""
        token, offered = pairs.path_of(transport), self.site().rotary_dim
        tokens = pairs.Queries(query, seq, path=token)
        turn = lambda a: endpoint.mapped(tokens, pairs.Keys(a, a, seq, path=token), transport,
                                         offered)
        turned = [{name: turn(a)[1] if name in _VECTORS else a for name, a in write.items()}
                  for write in writes]
        return turn(query)[0], turned

    def empty_state(self, batch: int, value_dim: int, tail: conv.ConvState) -> DeltaState:
        """The state before any token."""
        site, (lanes, carry) = self.site(), self.structure(batch)
        memory = jnp.zeros((batch, site.num_heads, site.key_dim, value_dim), wide_dtype())
        return DeltaState(memory, tail, L.nothing_seen(batch, lanes.axes), carry)


def unit(x: jax.Array) -> jax.Array:
    """x / sqrt(sum x^2 + 1e-6), wide."""
    x = wide(x)
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


def log_rate(lowest: float):
    """Initialiser of A where exp(A), the rate of a gate, starts uniform in (lowest, 16)."""

    def init(key, shape, dtype=jnp.float32):
        return jnp.log(jax.random.uniform(key, shape, dtype, lowest, 16.0))

    return init


def step_bias(key, shape, dtype=jnp.float32):
    """Initialiser of dt where softplus(dt) starts log-uniform in (1e-3, 1e-1)."""
    shortest, longest = jnp.log(jnp.array([1e-3, 1e-1], dtype))
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, shortest, longest))
    return dt + jnp.log(-jnp.expm1(-dt))  # the inverse of softplus


def _roles(key, erase, write) -> dict:
    """The vectors of a write as `linear_attention` names them."""
    if erase is None:
        return dict(erase=key)
    return dict(erase=erase, write=key) if write is None else dict(erase=erase, write=write,
                                                                   key=key)


def _reflection(path: L.Householder, write: dict) -> dict:
    """I - beta w w^T as a step before a token's own, which adds nothing."""
    batch, length, heads, _ = write["erase"].shape
    fits = lambda a: jnp.broadcast_to(
        pairs.repeat_heads(a, heads), (batch, length, heads, *a.shape[3:]))
    roles = dict(erase=fits(path.vector), write=fits(path.vector),
                 key=jnp.zeros_like(write["erase"]))
    return dict({name: a for name, a in roles.items() if name in write}, log_decay=None,
                beta=fits(path.beta), value=jnp.zeros_like(write["value"]))


def _sum(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    """Sum of log gates of a head or of its channels."""
    if a is None or b is None:
        return b if a is None else a
    rank = max(a.ndim, b.ndim)
    channels = lambda x: x if x.ndim == rank else x[..., None]
    return channels(a) + channels(b)


def _turned_memory(query, transport: L.Rotation | L.ContentRotation, step: jax.Array):
    """The query with its amplitude, and by what angles each token turns the memory."""
    if isinstance(transport, L.ContentRotation):
        angle = pairs.repeat_heads(wide(transport.step), query.shape[2])
    else:
        query, angle = endpoint.amplified(query, transport), L.phase(transport, step)[:, :, None]
    angle = jnp.broadcast_to(-angle, (*query.shape[:3], angle.shape[-1]))
    return query, dict(rotation=angle, interleaved=transport.interleaved)


def _woven(query: jax.Array, steps: list[dict], starts: jax.Array | None, turning: dict) -> dict:
    """The steps of each token as tokens of their own: [B,T,...] -> [B,N T,...].

    A segment starts and the memory turns at the first of them, the last one reads.
    """
    many, (batch, length) = len(steps), query.shape[:2]

    def weave(parts):
        parts = jnp.stack([a.astype(parts[-1].dtype) for a in parts], 2)
        return parts.reshape(batch, many * length, *parts.shape[3:])

    first = lambda a: weave([a] + [jnp.zeros_like(a)] * (many - 1))
    rows = {name: weave([step[name] for step in steps]) for name in steps[-1]
            if name != "log_decay"}
    rows.update(turning, query=weave([jnp.zeros_like(query)] * (many - 1) + [query]))
    if turning:
        rows["rotation"] = first(turning["rotation"])
    if starts is not None:
        rows["start"] = first(jnp.broadcast_to(starts, (batch, length)))
    gates = [step["log_decay"] for step in steps]
    if all(gate is None for gate in gates):
        return rows
    rank = max(gate.ndim for gate in gates if gate is not None)
    shape = (batch, length, *query.shape[2:][: rank - 2])
    full = lambda gate: jnp.zeros(shape, wide_dtype()) if gate is None else jnp.broadcast_to(
        gate if gate.ndim == rank else gate[..., None], shape)
    return dict(rows, log_decay=weave([full(gate) for gate in gates]))
