"""One run, from its config to its rows: data, model, training, the length ladder."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lcx import data as data_library
from lcx import lookup, sharding, train
from lcx.config import apply, canonical_json, code_version, load, run_id
from lcx.errors import ConfigError
from lcx.eval.ladder import ladder
from lcx.lanes import sequence
from lcx.model import build_model
from lcx.ops.attention import api as attention
from lcx.study import describe, flops, records
from lcx.study.status import locked, read_status, write_atomically, write_status
from lcx.train import checkpoint, metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that evaluation needs; made by `open_run`."""

    folder: Path
    config: ConfigDict
    data: data_library.Data
    model: nn.Module
    variables: Any
    step: int


def folder_of(config: ConfigDict) -> Path:
    """runs/<name>/<run id>."""
    return Path(config.runtime.out).expanduser() / config.runtime.name / run_id(config)


def check(config: ConfigDict) -> None:
    """Everything that can be wrong with a config and needs neither data nor a compiler.

    Raises ConfigError, Refusal or Unimplemented.
    """
    mesh = sharding.make_mesh(**config.runtime.mesh)
    ways = sharding.batch_ways(mesh) * config.experiment.train.accumulate
    if ways < 1 or config.experiment.data.batch_size % ways:
        raise ConfigError(f"experiment.data.batch_size={config.experiment.data.batch_size} must be "
                          f"a multiple of {ways}: mesh ways x experiment.train.accumulate")
    with attention.backend(config.runtime.backend):
        _model(apply(config, {"experiment.model.vocab_size":
                              config.experiment.model.vocab_size or 256}))


def run_member(config: ConfigDict, folder: str | Path | None = None, *,
               test: bool = True) -> dict[str, Any]:
    """Train and evaluate one config in its folder; returns its status. A finished one is skipped.

    A half-done run goes on from its last checkpoint; without `test` it stops before the ladder.
    Whatever ends it is written to status.json and raised again. Raises Busy where another process
    holds the folder.
    """
    folder = Path(folder or folder_of(config))
    with locked(folder), _logged(folder) as write_log:
        if (status := read_status(folder))["state"] == "finished":
            return status
        write_atomically(folder / "config.json", canonical_json(config) + "\n")
        with _status(folder, write_log) as seconds:
            began = time.monotonic()
            train_member(config, folder)
            seconds["train_seconds"] = round(time.monotonic() - began, 1)
            if not test:
                return write_status(folder, "waiting", note="trained, not evaluated", **seconds)
            evaluate(folder)
        return read_status(folder)


def evaluate_member(folder: str | Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Evaluate a trained run, under its own config or with overrides; returns the new rows."""
    folder = Path(folder)
    config = None
    if overrides:
        config = load(str(_config_file(folder)), overrides)
        if run_id(config) == run_id(load(str(_config_file(folder)))):
            config = None  # runtime only: the same measurement
    else:
        _config_file(folder)
    with locked(folder), _logged(folder) as write_log:
        if config is not None:
            return evaluate(folder, config)
        with _status(folder, write_log):
            return evaluate(folder)


@contextlib.contextmanager
def _status(folder: Path, write_log: Callable[[str], Any]) -> Iterator[dict[str, float]]:
    """status.json says running, then finished, failed, or waiting after a request to stop."""
    write_status(folder, "running", pid=os.getpid())
    seconds, began = {}, time.monotonic()
    try:
        yield seconds
    except BaseException as error:
        state = "waiting" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"
        write_status(folder, state, error=_one_line(error))
        write_log("".join(traceback.format_exception(error)))
        raise
    if read_status(folder)["state"] == "running":
        write_status(folder, "finished", **seconds, seconds=round(time.monotonic() - began, 1),
                     **dict(zip(("code_version", "dirty"), code_version())))


def train_member(config: ConfigDict, folder: Path) -> None:
    """Train to the last step; the parameters are in the folder's checkpoints."""
    check(config)
    _compile_cache(config)
    config, data = _with_data(config)
    with attention.backend(config.runtime.backend):
        train.train(config, data.train_batches(), folder, model=_model(config))


def evaluate(folder: str | Path, config: ConfigDict | None = None) -> list[dict[str, Any]]:
    """Walk the length ladder with a run's last checkpoint, and write its rows.

    With `config` (the run's own under other eval settings) rows are added; without, they replace
    those of an evaluation that did not come to its end.
    """
    folder = Path(folder)
    run = open_run(folder, config)
    options, found = run.config.experiment.eval, []
    reach = run.config.experiment.data.train_length * options.max_factor
    documents = run.data.evaluation_documents(
        reach + run.config.experiment.data.train_length // 4, split=options.split,
        limit=options.documents, seed=options.seed)
    counts = np.zeros(run.model.vocab_size, np.int64)
    known = run.data.splits["train"].counts
    counts[:len(known)] = known
    with jax.set_mesh(sharding.make_mesh(**run.config.runtime.mesh)), \
            attention.backend(run.config.runtime.backend):
        rows = ladder(
            run.model, run.variables, documents,
            train_length=run.config.experiment.data.train_length, max_factor=options.max_factor,
            fairness=fairness(run), targets=options.targets, seed=options.seed,
            batch_tokens=options.batch_tokens, unigram=counts, chunk=options.chunk,
            shuffled_prefix=options.shuffled_prefix, resamples=options.resamples)
        if config is None:
            (folder / records.NAME).unlink(missing_ok=True)
        for row in rows:
            row["extra"] |= {"arm": describe.arm_id(run.config), "split": options.split,
                             "data": run.data.content_hash}
            if run.config.runtime.label:
                row["extra"]["label"] = run.config.runtime.label
            records.append(folder / records.NAME, [row])
            found.append(row)
    return found


def open_run(folder: str | Path, config: ConfigDict | None = None) -> Run:
    """Restore a run's parameters, verified, under its own config or another."""
    folder = Path(folder)
    config = config or load(str(_config_file(folder)))
    _compile_cache(config)
    full, data = _with_data(config)
    model = _model(full)
    mesh = sharding.make_mesh(**full.runtime.mesh)
    with jax.set_mesh(mesh):
        inputs = jnp.zeros((1, full.experiment.data.train_length), jnp.int32)
        seq = sequence(1, inputs.shape[1])
        key = jax.random.key(full.experiment.seed)
        boxed = dict(jax.eval_shape(model.init, key, inputs, seq))
        at = sharding.shardings(boxed["params"], mesh)
        abstract = jax.tree.map(
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
            nn.unbox(boxed["params"]), at)
        steps = checkpoint.steps(folder / "checkpoints")
        params = checkpoint.load_params(folder / "checkpoints", abstract)

        def beside() -> Any:
            return {k: v for k, v in nn.unbox(model.init(key, inputs, seq)).items()
                    if k != "params"}
        variables = {"params": params, **jax.jit(beside)()}
    return Run(folder, config, data, model, variables, steps[-1])


def _config_file(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a run: it has no config.json; give a folder "
                          "runs/<name>/<run id>")
    return folder / "config.json"


def fairness(run: Run) -> dict[str, Any]:
    """What every row of a run says beside its value."""
    length, experiment = run.config.experiment.data.train_length, run.config.experiment
    version, dirty = code_version()
    logged = metrics.read(run.folder / "metrics.jsonl")
    optimizer = lookup.build("lcx.train.optimizers", experiment.train.optimizer)
    state = jax.eval_shape(lambda: run.model.init_state(1, length))
    return dict(
        run=run_id(load(str(run.folder / "config.json"))), config_hash=run_id(run.config),
        position=describe.position(run.config), mixer=describe.mixer(run.config),
        seed=experiment.seed, checkpoint_step=run.step,
        parameters=sum(x.size for x in jax.tree.leaves(run.variables["params"])),
        flops_per_token=_forward_flops(run.model, run.variables, length) // length,
        state_size=sum(math.prod(x.shape) for x in jax.tree.leaves(state)
                       if jnp.issubdtype(x.dtype, jnp.floating)),
        train_tokens=logged[-1]["train_tokens"] if logged else "unknown",
        learning_rate=optimizer.learning_rate,
        learning_rate_tuned=experiment.train.learning_rate_tuned,
        code_version=version, dirty=dirty)


def _forward_flops(model: nn.Module, variables: Any, length: int) -> int:
    """Of scoring one row of the train length; the plain attention, since kernels are opaque."""
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    with attention.backend("reference"):
        return flops.count(
            lambda v, i, t: model.apply(v, i, t, sequence(1, length), method="score")[0],
            variables, tokens, tokens)


def _with_data(config: ConfigDict) -> tuple[ConfigDict, data_library.Data]:
    """The data of a config, and the config with the vocabulary's size filled in."""
    data = data_library.load(config.experiment.data, seed=config.experiment.seed,
                             cache=config.runtime.data_cache or None,
                             process_index=jax.process_index(), process_count=jax.process_count())
    if config.experiment.model.vocab_size is None:
        config = apply(config, {"experiment.model.vocab_size": data.vocab_size})
    data.require_vocab(config.experiment.model.vocab_size)
    return config, data


def _model(config: ConfigDict) -> nn.Module:
    return build_model(config.experiment.model, config.experiment.data.train_length)


def _compile_cache(config: ConfigDict) -> None:
    if config.runtime.compile_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        where = str(Path(config.runtime.compile_cache).expanduser())
        jax.config.update("jax_compilation_cache_dir", where)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[Callable[[str], Any]]:
    """lcx's own log goes to log.txt in the run's folder; yields a function that adds to it."""
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("lcx")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield handler.stream.write
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
