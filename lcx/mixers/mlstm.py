"""mLSTM: a matrix memory with exponential input gates and a normaliser, the mixer of xLSTM-7B."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count, Expansion, NonNegative
from lcx.errors import ConfigError
from lcx.layers import Dense, HeadNorm
from lcx.mixers.mlstm_family import MlstmMixer, three_to_six
from lcx.types import wide


class Mlstm(MlstmMixer):
    """mLSTM layer of xLSTM-7B (arXiv:2405.04517, arXiv:2503.13427): [B,T,D] -> [B,T,D].

    h = (sum_j w_ij v_j) / max(|sum_j w_ij|, 1), w_ij = q_i.k_j / sqrt(K) e^(i_j) prod sigmoid(f);
    W_o (sigmoid(W_g x) * norm(h)), the norm a layer norm of each head. i and f are soft-capped:
    cap tanh((W x + b) / cap). A scheme's lanes act on the weights of numerator and normaliser
    alike; its gates add to log sigmoid(f).

    key_factor: width of all queries as a share of the layer's, values take all of it; cap: of the
    gates, 0 for none. Maps start normal with variance 2/(5 D); W of the gates at 0, b of i at -10,
    of f evenly from 3 to 6 over the heads. The block of the first version is `mlstm_v1`.
    """

    num_heads: Count = 4
    key_factor: Expansion = 0.5
    cap: NonNegative = 15.0

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
        log_forget = nn.log_sigmoid(self._gate(x, "forget_gate", three_to_six))
        lanes, carry = self.see(x, seq, None if state is None else state.core.carry, shared)
        out, state = self.remember(query, key, value, log_forget, log_input, seq, lanes, carry,
                                   state)
        out = HeadNorm(("heads", "value_dim"), eps=1e-6, name="norm")(out)
        out = out * nn.sigmoid(dense(site.value_dim, "value_dim", "gate"))
        out = Dense((self.width,), ("width",), ("heads", "value_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        return self.empty_memory(batch, max_length, dtype)

    def _gate(self, x, name: str, bias) -> jax.Array:
        gate = wide(Dense((self.num_heads,), ("heads",), use_bias=True, bias_init=bias,
                          init=nn.initializers.zeros_init(), name=name)(x))
        return self.cap * jnp.tanh(gate / self.cap) if self.cap else gate
