"""What can be wrong with a run, found before it costs anything; and its data and model."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lcx import data as data_library
from lcx import sharding
from lcx.config import apply, canonical_json, validate
from lcx.errors import ConfigError, did_you_mean
from lcx.eval import exact
from lcx.eval.lengths import contexts
from lcx.lanes import sequence
from lcx.model import build_model, has_position_parameters
from lcx.model.reach import reach_of
from lcx.ops.attention import api as attention
from lcx.study.run_folder import folder_of
from lcx.study.start import source_of
from lcx.study.under import variants
from lcx.train import checkpoint, trackers

UNASKED = ("documents", "shuffled_prefix")  # by the ladder of a task
_TRACED: set[Any] = set()  # models that `check` has seen traced
DTYPES = ("float32", "bfloat16", "float16", "float64")


def check(config: ConfigDict, *, training: bool = True) -> None:
    """All that needs neither data nor a compiler: domains, mesh, batch, ladder, scheme on mixer.

    training: with what only training needs, the share of a batch on each device and the trackers.
    Raises ConfigError, Refusal or Unimplemented.
    """
    validate(config)
    experiment = config.experiment
    mesh = sharding.make_mesh(**config.runtime.mesh)
    ways = sharding.batch_ways(mesh) * experiment.train.accumulate
    if training and experiment.data.batch_size % ways:
        raise ConfigError(f"experiment.data.batch_size={experiment.data.batch_size} must be a "
                          f"multiple of {ways}: mesh ways x experiment.train.accumulate")
    contexts(experiment.data.train_length, experiment.eval.max_factor)
    if experiment.data.task is not None:
        for key in UNASKED:
            if experiment.eval[key]:
                raise ConfigError(f"experiment.eval.{key} says nothing of a task, whose rows are "
                                  "no documents; leave it out (targets counts its rows)")
    if experiment.model.dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{experiment.model.dtype}'"
                          + did_you_mean(experiment.model.dtype, DTYPES))
    if training:
        trackers.check(config.runtime.trackers)
    with attention.backend(config.runtime.backend):
        model = model_of(apply(config, {
            "experiment.model.vocab_size": experiment.model.vocab_size or 256}))
        model.data_transform()
        if experiment.model.share_position and not has_position_parameters(model):
            raise ConfigError("experiment.model.share_position: no scheme of this model has "
                              "parameters that layers could share; leave it out")
        _trace(model, canonical_json(experiment.model), experiment.data.train_length,
               config.runtime.backend)
    for variant in variants(config):
        check(variant, training=training)


def _trace(model: nn.Module, *key: Any) -> None:
    """See the model once by its shapes alone: what its layers refuse while they are traced.

    Seeds and learning rates share a model, so that a sweep traces each of its models once.
    """
    if key not in _TRACED:
        length = model.train_length
        tokens = jax.ShapeDtypeStruct((1, length), "int32")
        jax.eval_shape(model.init, jax.random.key(0), tokens, sequence(1, length))
        _TRACED.add(key)


def lengths_of(config: ConfigDict) -> list[int]:
    """The lengths of the config's ladder, ascending."""
    of = contexts if config.experiment.data.task is None else exact.lengths
    return list(of(config.experiment.data.train_length, config.experiment.eval.max_factor))


def check_data(config: ConfigDict) -> None:
    """Prepare the corpus and see that its documents reach the ladder's end, and that the run to
    start from is there.

    Raises DataError or ConfigError.
    """
    if not begun(config):
        source_of(config)
    _, data = with_data(config)
    check_reach(data, config)


def begun(config: ConfigDict) -> bool:
    """Whether a run has checkpoints of its own, and needs nothing of what it began from."""
    return config.experiment.train.start_from is not None and bool(
        checkpoint.steps(folder_of(config) / "checkpoints"))


def with_data(config: ConfigDict, tokenizer: Any = None) -> tuple[ConfigDict, Any]:
    """The config with the vocabulary's size filled in, and its data; the tokenizer may be given."""
    data = data_library.load(config.experiment.data, seed=config.experiment.seed,
                             cache=config.runtime.data_cache or None,
                             process_index=jax.process_index(), process_count=jax.process_count(),
                             tokenizer=tokenizer)
    config = with_vocabulary(config, data)
    data.require_vocab(config.experiment.model.vocab_size)
    return config, data


def with_vocabulary(config: ConfigDict, source: Any) -> ConfigDict:
    """The config with the vocabulary's size of a tokenizer (or of data), unless it has its own."""
    if config.experiment.model.vocab_size is not None:
        return config
    return apply(config, {"experiment.model.vocab_size": source.vocab_size})


@functools.singledispatch
def check_reach(data: Any, config: ConfigDict) -> None:
    """Raise where the data cannot serve the config's ladder, or the model's tables the rows of
    training; one function per kind of data."""
    raise TypeError(f"no ladder for data of type {type(data).__name__}")


@check_reach.register
def _(data: data_library.Data, config: ConfigDict) -> None:
    documents_of(config, data)
    longest = config.experiment.data.train_length
    if data.packing.segments:  # ids start again with each document
        longest = min(longest, int(data.splits["train"].lengths.max()))
    _check_tables(config, data.vocab_size, longest)
    experiment = config.experiment
    if (epochs := experiment.data.epochs) is not None:
        held = epochs * len(data.plan) // experiment.data.batch_size
        if held < experiment.train.steps:
            raise ConfigError(
                f"experiment.data.epochs={epochs} of {len(data.plan)} rows hold {held} batches of "
                f"{experiment.data.batch_size}, fewer than experiment.train.steps="
                f"{experiment.train.steps}; lower steps, raise epochs or leave it None")


@check_reach.register
def _(data: data_library.TaskData, config: ConfigDict) -> None:
    for length in exact.lengths(config.experiment.data.train_length,
                                config.experiment.eval.max_factor):
        data.task.check(length)
    _check_tables(config, data.vocab_size, config.experiment.data.train_length)


def _check_tables(config: ConfigDict, vocab_size: int, length: int) -> None:
    """Raise TableEnd where a table of positions is shorter than what training reads of it."""
    size = config.experiment.model.vocab_size or vocab_size
    with attention.backend(config.runtime.backend):
        model = model_of(apply(config, {"experiment.model.vocab_size": size}))
        reach_of(model).require(model.init, jax.random.key(0), length)


def documents_of(config: ConfigDict,
                 data: data_library.Data) -> list[data_library.EvaluationDocument]:
    """The documents of the ladder. Raises DataError where none is long enough."""
    options, length = config.experiment.eval, config.experiment.data.train_length
    return data.evaluation_documents(length * options.max_factor + length // 4,
                                     split=options.split, limit=options.documents,
                                     seed=options.seed)


def model_of(config: ConfigDict) -> nn.Module:
    return build_model(config.experiment.model, config.experiment.data.train_length)


def use_compile_cache(config: ConfigDict) -> None:
    """Keep compiled programs for later runs, unless the environment already says where."""
    if config.runtime.compile_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        where = str(Path(config.runtime.compile_cache).expanduser())
        jax.config.update("jax_compilation_cache_dir", where)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

