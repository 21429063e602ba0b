"""One optimizer step: the weighted mean loss of the global batch, its gradient, the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lcx import lanes
from lcx.model.ahead import weights_ahead
from lcx.sharding import shard
from lcx.train.state import Constants, TrainState

AXES = {"inputs": "batch length", "targets": "batch length", "weights": "batch length",
        "segment": "batch length", "document": "batch length", "ids": "batch length axes",
        "moved": "batch length"}


def sequence_of(batch: Mapping[str, jax.Array]) -> lanes.Sequence:
    """The Sequence of a batch; what all rows share has a leading dimension of 1."""
    return lanes.sequence(1, batch["inputs"].shape[1], segment=batch.get("segment"),
                          ids=batch.get("ids"), moved=batch.get("moved"))


def make_step(
    model: Any,
    transform: optax.GradientTransformation,
    schedule: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    clip: float = 1.0,
    accumulate: int = 1,
) -> Callable[[TrainState, Constants, Mapping[str, jax.Array]], tuple[TrainState, dict]]:
    """The function (state, constants, batch) -> (state, metrics), to be jitted with state donated.

    The loss is sum(nll x weights) / sum(weights) over the whole batch, and so is each term of
    further tokens (`lcx.model.ahead`), nll and weights being those of the token it predicts: the
    sums of weights are taken of the global batch, before it is cut, so that the update is the
    same for any `accumulate` and any mesh. Gradients are clipped to the global norm `clip` (0:
    not at all). Metrics are float32 scalars. What the model's layers sow into "losses" (the
    balance of experts) is no sum over tokens: its mean over the micro-batches is added to what is
    minimised. All terms but the first are reported together as auxiliary_loss.
    """
    further = getattr(model, "predict_ahead", 0)

    def weights_of(batch) -> list[jax.Array]:
        """Weights [B,T] of each target, and of the token k after it for k = 1, 2, ..."""
        return [weights_ahead(batch["weights"], steps, segment=batch.get("segment"),
                              document=batch.get("document")) for steps in range(further + 1)]

    def loss(params, constants: Constants, batch, key, totals):
        (nll, _), told = model.apply(
            {"params": params, **constants.variables}, batch["inputs"], batch["targets"],
            sequence_of(batch), method="score", rngs={"position": key},
            mutable=["losses", "further"],
        )
        terms = [nll, *told.get("further", {}).get("nll", ())]
        first, *rest = (jnp.sum(term * weights.astype(term.dtype)) / total for term, weights, total
                        in zip(terms, weights_of(batch), totals, strict=True))
        means = [jnp.sum(x) / accumulate for x in jax.tree.leaves(told.get("losses", {}))]
        parts = {"loss": first}
        if rest or means:
            parts["auxiliary_loss"] = sum(rest) + sum(means)
        return sum(parts.values()), parts

    def gradient(params, constants, batch, key, totals):
        run = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (_, parts), grads = run(params, constants, batch, key, totals)
            return parts, grads

        def micro(carry, turn):
            number, part = turn
            part = {name: shard(x, AXES[name]) for name, x in part.items()}
            key_ = jax.random.fold_in(key, number)
            (_, found), grads = run(params, constants, part, key_, totals)
            return jax.tree.map(jnp.add, carry, (found, grads)), None

        parts = {name: _cut(x, accumulate) for name, x in batch.items()}
        _, shape = jax.eval_shape(loss, params, constants, {n: x[0] for n, x in parts.items()},
                                  key, totals)
        zero = (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape),
                jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(micro, zero, (jnp.arange(accumulate), parts))[0]

    def step(state: TrainState, constants: Constants, batch):
        batch = {name: shard(x, AXES[name]) for name, x in batch.items()}
        key = jax.random.fold_in(constants.key, state.step)
        totals = [jnp.sum(weights) for weights in weights_of(batch)]
        totals = [jnp.where(total > 0, total, 1) for total in totals]  # of padding: a loss of 0
        parts, grads = gradient(state.params, constants, batch, key, totals)
        norm = _norm(grads)
        if clip:
            factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
            grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        rate = constants.learning_rate * schedule(state.step, constants.steps)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), state.params, updates)
        metrics = {
            **parts,
            "grad_norm": norm,
            "param_norm": _norm(params),  # of the new parameters: they are saved
            "learning_rate": rate,
            "tokens": jnp.sum(batch["weights"] > 0),
        }
        metrics = {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B/parts, ...], every part taking rows from each device's own."""
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
