"""From a config and a mesh to a compiled step: abstract shapes, shardings, init in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from lcx import lookup, sharding
from lcx.errors import ConfigError, DataError
from lcx.train.decay import decayed
from lcx.train.state import Constants, TrainState
from lcx.train.step import AXES, make_step, sequence_of


@dataclasses.dataclass(frozen=True)
class Program:
    """A training run's functions on one mesh; `abstract` is its state as shapes with shardings."""

    mesh: Mesh
    model: nn.Module
    abstract: TrainState
    vocab_size: int | None
    step: Callable[[TrainState, Constants, Mapping[str, jax.Array]], tuple[TrainState, dict]]
    init: Callable[[], TrainState]
    begin: Callable[[Any], TrainState]  # step 0 at given parameters, placed as `abstract` is
    constants: Callable[[], Constants]

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch -> global arrays, split over the batch axes.

        Raises DataError on a token outside the vocabulary: the gather would clamp it silently.
        """
        if self.vocab_size is not None:
            for name in ("inputs", "targets"):
                low, high = int(batch[name].min()), int(batch[name].max())
                if low < 0 or high >= self.vocab_size:
                    raise DataError(f"{name} hold token {low if low < 0 else high} but the "
                                    f"vocabulary is 0..{self.vocab_size - 1}; use the tokenizer "
                                    "that the model's vocab_size was set for")
        where = sharding.batch_sharding(self.mesh)
        names = [n for n in AXES if n in batch and not (n == "ids" and _merely_count(batch))]
        return {name: jax.make_array_from_process_local_data(where, np.asarray(batch[name]))
                for name in names}


def build_program(config: Any, model: nn.Module, mesh: Mesh) -> Program:
    """Everything of a run that does not touch data; call and use it under `jax.set_mesh(mesh)`.

    Raises ConfigError, before anything compiles, where the batch or the heads do not divide over
    the mesh, or an option is unknown.
    """
    experiment = config.experiment
    length, rows = experiment.data.train_length, experiment.data.batch_size
    options = experiment.train
    ways = sharding.batch_ways(mesh) * options.accumulate
    if options.accumulate < 1 or rows % ways:
        raise ConfigError(
            f"experiment.data.batch_size={rows} must be a multiple of {ways}: the mesh cuts it "
            f"{sharding.batch_ways(mesh)} ways and experiment.train.accumulate={options.accumulate}"
        )
    optimizer = lookup.build("lcx.train.optimizers", options.optimizer)
    schedule = lookup.build("lcx.train.schedules", options.schedule)

    whole = sharding.replicated(mesh)
    key = jax.device_put(jax.random.key(experiment.seed), whole)
    init_key = jax.random.fold_in(key, 0)

    def init_variables(key):
        inputs = jnp.zeros((rows, length), jnp.int32)
        return model.init(key, inputs, sequence_of({"inputs": inputs}))

    boxed = dict(jax.eval_shape(init_variables, init_key))
    boxed_params = boxed.pop("params")
    params_at = sharding.shardings(boxed_params, mesh)
    constants_at = sharding.shardings(boxed, mesh)
    transform = optimizer.direction(decayed(boxed_params))

    def at(params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, transform.init(params))

    def init_state(key) -> TrainState:
        return at(nn.unbox(init_variables(key)["params"]))

    shapes = jax.eval_shape(init_state, init_key)
    state_at = TrainState(whole, params_at, _like_params(transform, shapes, params_at, whole))
    abstract = jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, state_at
    )

    def beside(key):
        variables = dict(init_variables(key))
        del variables["params"]
        return nn.unbox(variables)

    def constants() -> Constants:
        number = lambda x: jax.device_put(np.float32(x), whole)
        return Constants(
            jax.jit(beside, out_shardings=constants_at)(init_key),
            jax.random.fold_in(key, 1), number(optimizer.learning_rate), number(options.steps),
        )

    step = make_step(model, transform, schedule, clip=options.clip, accumulate=options.accumulate)
    return Program(
        mesh, model, abstract, experiment.model.get("vocab_size"),
        step=jax.jit(step, donate_argnums=0, out_shardings=(state_at, whole)),
        init=lambda: jax.jit(init_state, out_shardings=state_at)(init_key),
        begin=lambda params: jax.jit(at, out_shardings=state_at)(params),
        constants=constants,
    )


def _merely_count(batch: Mapping[str, np.ndarray]) -> bool:
    """Whether the ids are 0..T-1 in every row (padding aside), which `sequence_of` gives anyway.

    They are then shared by the rows: angles and biases are computed once and not B times.
    """
    ids = batch["ids"]
    if batch.get("segment") is not None or ids.shape[-1] != 1:
        return False
    padding = batch["document"] < 0 if "document" in batch else False
    return bool(np.all((ids[..., 0] == np.arange(ids.shape[1])) | padding))


def _like_params(
    transform: optax.GradientTransformation, shapes: TrainState, params_at: Any,
    whole: NamedSharding,
) -> Any:
    """Shardings of the optimizer's state: a moment lies where its parameter lies."""

    def moment(leaf, param, at):
        return at if leaf.shape == param.shape else whole

    return optax.tree_utils.tree_map_params(
        transform, moment, shapes.opt_state, shapes.params, params_at,
        transform_non_params=lambda leaf: whole,
    )
