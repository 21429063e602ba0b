"""Mamba-3 with several inputs and outputs per head: one memory, R keys and R values to a token."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.layers import Dense, RmsNorm
from lcx.mixers.linear_supports import SUPPORTS
from lcx.mixers.mamba3 import Gates, Mamba3, Mamba3State
from lcx.ops.linear import own as itself
from lcx.ops.linear import ranks
from lcx.types import wide


class Mamba3Mimo(Mamba3):
    """Mamba-3 with `rank` R inputs and outputs per head (MIMO, arXiv:2603.15569).

    S_t = a_t (S_{t-1} + (1 - l_t) step_t sum_r k_{t-1,r} x_{t-1,r}^T) + l_t step_t sum_r k_{t,r}
    x_{t,r}^T, y_r = S^T q_r + skip x_r, out = W_o sum_r m^o_r y_r silu(m^z_r gate), x_r = m^x_r
    value: the memory is as large as that of `mamba3`, whose gates, trapezoid and angles it has. The
    m [H,R,V] start at 1 / R, 1 (of the gate) and 1 / R; queries and keys are projections for each
    rank under one norm, with a bias for each head and rank. Pairs of channels are interleaved as in
    the reference recurrence; the published layer's halves are another order of the same channels.

    The ranks of a token are tokens of their own to the core, T R in all, of which `chunk` counts.
    A pairwise bias reads the query of one rank and the key of another; what counts keys along a
    row (CoPE) has a row of keys for each rank.
    """

    rank: Count = 4

    supports = SUPPORTS  # rings and FFTs have one slot for each id
    paper: ClassVar[str] = "arXiv:2603.15569"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=8, rank=2),
        dict(state_dim=12, head_dim=6, num_groups=2, rope_fraction=1.0, rank=3))

    def site(self) -> L.Site:
        if self.rank < 1:
            raise ConfigError(f"rank={self.rank}: give a head at least one input")
        return super().site()

    def _features(self, x: jax.Array, name: str) -> jax.Array:
        """The queries or keys [B,T R,H,K] before any turn, wide."""
        heads, size = self.num_heads, self.state_dim
        y = Dense((self.rank, self.num_groups, size), (None, "kv_heads", "state"), name=name)(x)
        y = RmsNorm("state", 1e-5, name=f"{name}_norm")(y)
        y = jnp.repeat(wide(y), heads // self.num_groups, axis=3)
        bias = self._number(f"{name}_bias", nn.initializers.ones_init(), None, "state",
                            shape=(self.rank, size))
        return _in_a_row(y + jnp.swapaxes(bias, 0, 1))

    def _gain(self, name: str, start: float) -> jax.Array:
        """A factor [R,H,V] on the channels of each rank."""
        gain = self._number(name, nn.initializers.constant(start), None, "head_dim",
                            shape=(self.rank, self._head_dim()))
        return jnp.swapaxes(gain, 0, 1)

    def _inputs(self, value: jax.Array) -> jax.Array:
        """[B,T,H,V] -> [B,T R,H,V]."""
        value = value[:, :, None] * self._gain("value_gain", 1 / self.rank).astype(value.dtype)
        return _in_a_row(value)

    def _output(self, y: jax.Array, gate: jax.Array) -> jax.Array:
        """[B,T R,H,V] -> [B,T,H,V]."""
        dtype, shape = gate.dtype, (*gate.shape[:2], self.rank, *gate.shape[2:])
        gate = nn.silu(wide(gate)[:, :, None] * self._gain("gate_gain", 1.0))
        y = self._gain("out_gain", 1 / self.rank) * wide(y).reshape(shape) * gate
        return jnp.sum(y, 2).astype(dtype)

    def _own(self, share: jax.Array, query: jax.Array, key: jax.Array, lanes: L.Lanes):
        return share[..., None] * itself.products(query, key, lanes, self.rank)

    def _recall(self, query, key, value, gates: Gates, seq, lanes, carry,
                state: Mamba3State | None):
        many = ranks.each(gates, self.rank)
        many = many.replace(log_decay=ranks.once(gates.log_decay, self.rank))
        return super()._recall(query, key, value, many, ranks.sequence(seq, self.rank),
                               ranks.lanes(lanes, self.rank), carry, state)

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array, seq: L.Sequence,
            lanes: L.Lanes, carry: Any, state: Any, *, log_decay: jax.Array, own: jax.Array):
        """As every linear mixer's, of ranks in a row; own [B,T R,H,R]."""
        self.sow("intermediates", "inner", {"core": {"ranks": dict(
            query=query, key=key, value=value, log_decay=log_decay, own=own, lanes=lanes)}})
        run = self._way(lanes, state)
        out, state = run(query, key, value, seq, ranks.rows(lanes, self.rank), carry, state,
                         log_decay, None, own)
        out = out.astype(value.dtype)
        self.sow("intermediates", "outer", out)
        return out, state


def _in_a_row(x: jax.Array) -> jax.Array:
    """[B,T,R,...] -> [B,T R,...]."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])
