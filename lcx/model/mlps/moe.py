"""Mixture of experts: each token passes the few gated MLPs that its router picks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count, NonNegative, Whole
from lcx.errors import ConfigError
from lcx.layers import Dense
from lcx.model.mlps import CountingMlp
from lcx.model.mlps.gated import Gated
from lcx.sharding import over_experts
from lcx.types import wide
from lcx.weights import matrix


class Moe(CountingMlp):
    """sum of p_e(x) expert_e(x) over a token's top_k experts, plus shared ones: [B,T,D] -> [B,T,D].

    Softmax router (arXiv:2101.03961) and SwiGLU experts; no token is ever dropped. `normalise`
    makes the probabilities of the picked experts sum to 1 (Mixtral, arXiv:2401.04088); num_shared
    experts see every token, unweighted (arXiv:2401.06066). hidden: of one expert; by default the
    experts that a token passes have together about the weights of the `gated` MLP.

    balance: coefficient of the load-balancing loss, num_experts x sum_e load_e importance_e with
    load the share of all picks and importance the mean probability; 1 at perfect balance, up to
    num_experts. Both are means over the tokens of documents (`counted`): padding is routed, and
    counts nothing; tokens of loss weight 0 count. It is sown into "losses", whose mean over the
    micro-batches training adds to its loss: a product of two means, it is no sum over tokens, and
    that of a whole batch is another number (arXiv:2501.11873).
    """

    width: int
    output_scale: float = 1.0
    num_experts: Count = 8
    top_k: Count = 2
    num_shared: Whole = 0
    hidden: Count | None = None
    normalise: bool = True
    balance: NonNegative = 0.01

    @nn.compact
    def __call__(self, x: jax.Array, counted: jax.Array | None = None) -> jax.Array:
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"top_k={self.top_k} must be from 1 to num_experts="
                              f"{self.num_experts}")
        experts, width = self.num_experts, self.width
        passed = self.top_k + self.num_shared
        hidden = self.hidden or -(-8 * width // (24 * passed)) * 8
        logits = Dense((experts,), (None,), exact=True, name="router")(wide(x))
        probability = jax.nn.softmax(logits)
        gate, choice = jax.lax.top_k(probability, self.top_k)
        if self.normalise:
            gate = gate / jnp.sum(gate, -1, keepdims=True)
        self._tell(probability, choice, counted)
        weight = lambda name, scale, shape, names: self.param(
            name, matrix(nn.initializers.normal(scale), names), shape)
        into = weight("experts_in", width**-0.5, (experts, width, 2, hidden),
                      ("expert", "width", None, "mlp"))
        out_of = weight("experts_out", self.output_scale * hidden**-0.5, (experts, hidden, width),
                        ("expert", "mlp", "width"))
        y = over_experts(_picked, (x, choice, gate),
                         (into.astype(x.dtype), out_of.astype(x.dtype))).astype(x.dtype)
        if self.num_shared:
            y = y + Gated(width, self.output_scale, self.num_shared * hidden, name="shared")(x)
        return y

    def _tell(self, probability: jax.Array, choice: jax.Array, counted: jax.Array | None) -> None:
        """Sow the load of each expert, and the loss that evens it, over the tokens that count."""
        experts, tokens = probability.shape[-1], probability.shape[:2]
        counted = jnp.broadcast_to(True if counted is None else counted, tokens)
        share = counted / jnp.maximum(jnp.sum(counted), 1).astype(probability.dtype)
        mean = lambda x: jnp.sum(x * share[..., None], (0, 1))
        load = mean(jnp.mean(jax.nn.one_hot(choice, experts, dtype=probability.dtype), 2))
        self.sow("intermediates", "expert_load", load)
        if self.balance and not self.is_initializing():  # init would keep it among the variables
            importance = mean(probability)
            self.sow("losses", "balance", self.balance * experts * jnp.sum(load * importance))


def _picked(first: jax.Array | int, rows: tuple, weights: tuple) -> jax.Array:
    """The part of the experts first, first + 1, ... in each token's output, [B,T,D] wide.

    rows: x [B,T,D], choice and gate [B,T,k]. Each pick of a token is a row of its own; rows are
    sorted by expert, so that one ragged product serves them all, whatever the load.
    """
    (x, choice, gate), (into, out_of) = rows, weights
    here, width, _, hidden = into.shape
    picks = choice.shape[-1]
    expert = choice.reshape(-1) - first
    expert = jnp.where((expert >= 0) & (expert < here), expert, here)  # other devices' come last
    order = jnp.argsort(expert, stable=True)
    load = jnp.bincount(expert, length=here + 1)[:here].astype(jnp.int32)
    y = jax.lax.ragged_dot(x.reshape(-1, width)[order // picks], into.reshape(here, width, -1),
                           load)
    y = jax.lax.ragged_dot(nn.silu(y[:, :hidden]) * y[:, hidden:], out_of, load)
    y = jnp.where((expert < here)[:, None], wide(y[jnp.argsort(order)]), 0)
    return jnp.sum(y.reshape(*choice.shape, width) * gate[..., None], -2)
