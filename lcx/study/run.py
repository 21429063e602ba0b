"""One run, from its config to its rows: data, model, training, the length ladder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lcx import sharding, train
from lcx.config import code_version, load, resolve, run_id
from lcx.errors import ConfigError
from lcx.eval.ladder import ladder
from lcx.ops.attention import api as attention
from lcx.study import describe, records
from lcx.study.preflight import check, documents_of, model_of, use_compile_cache, with_data
from lcx.study.restore import config_file, fairness, open_run
from lcx.study.status import locked, read_status, write_atomically, write_status
from lcx.study.versions import settle
from lcx.train.checkpoint import saved


def folder_of(config: ConfigDict) -> Path:
    """runs/<name>/<run id>."""
    return Path(config.runtime.out).expanduser() / config.runtime.name / run_id(config)


def run_member(config: ConfigDict, folder: str | Path | None = None, *,
               test: bool = True, old: str = "refuse") -> dict[str, Any]:
    """Train and evaluate one config in its folder; returns its status. A finished one is skipped.

    A half-done run goes on from its last checkpoint; without `test` it stops before the ladder.
    `old` says what happens to results of other code: refuse (OtherVersion), keep or rerun.
    Whatever ends it is written to status.json and raised again. Raises Busy where another process
    holds the folder.
    """
    folder = Path(folder or folder_of(config))
    with locked(folder), _logged(folder) as write_log:
        settle(folder, old)
        if (status := read_status(folder))["state"] == "finished":
            return status
        write_atomically(folder / "config.json", json.dumps(
            {**resolve(config), "code_version": code_version()[0]}, sort_keys=True) + "\n")
        with _status(folder, write_log, "training") as now:
            began = time.monotonic()
            train_member(config, folder)
            now["train_seconds"] = round(time.monotonic() - began, 1)
            if not test:
                return write_status(folder, "waiting", note="trained, not evaluated", **now)
            write_status(folder, "running", doing="evaluating", **now)
            evaluate(folder)
        return read_status(folder)


def evaluate_member(folder: str | Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Evaluate a trained run, under its own config or with overrides; returns the new rows."""
    folder = Path(folder)
    own = load(config_file(folder))
    config = load(config_file(folder), overrides)
    with locked(folder), _logged(folder) as write_log:
        if run_id(config) != run_id(own):
            return evaluate(folder, config)
        with _status(folder, write_log, "evaluating"):
            return evaluate(folder)


def train_member(config: ConfigDict, folder: Path) -> None:
    """Train to the last step; the parameters are in the folder's checkpoints."""
    check(config)
    use_compile_cache(config)
    config, data = with_data(config)
    documents_of(config, data)  # what the ladder would refuse after training is refused now
    with attention.backend(config.runtime.backend):
        train.train(config, data.train_batches(), folder, model=model_of(config),
                    code_version=code_version()[0])


def evaluate(folder: str | Path, config: ConfigDict | None = None) -> list[dict[str, Any]]:
    """Walk the length ladder with a run's last checkpoint, and write its rows.

    With `config` (the run's own under overrides) rows are added; without, they replace those of
    an evaluation that did not come to its end.
    """
    folder = Path(folder)
    run = open_run(folder, config)
    options, found = run.config.experiment.eval, []
    counts = np.zeros(run.model.vocab_size, np.int64)
    known = run.data.splits["train"].counts
    counts[:len(known)] = known
    extra = {"arm": describe.arm_id(run.config), "split": options.split,
             "data": run.data.content_hash, "trained_with": ", ".join(run.trained_with),
             "dtype": run.config.experiment.model.dtype,
             **({"label": run.config.runtime.label} if run.config.runtime.label else {})}
    facts = fairness(run)
    with jax.set_mesh(sharding.make_mesh(**run.config.runtime.mesh)), \
            attention.backend(run.config.runtime.backend):
        rows = ladder(
            run.model, run.variables, documents_of(run.config, run.data),
            train_length=run.config.experiment.data.train_length, max_factor=options.max_factor,
            fairness=facts, targets=options.targets, seed=options.seed,
            batch_tokens=options.batch_tokens, unigram=counts, chunk=options.chunk,
            shuffled_prefix=options.shuffled_prefix, resamples=options.resamples)
        if config is None:
            (folder / records.NAME).unlink(missing_ok=True)
        for row in rows:
            row["extra"] |= extra
            records.append(folder / records.NAME, [row])
            found.append(row)
    return found


@contextlib.contextmanager
def _status(folder: Path, write_log: Callable[[str], Any],
            doing: str) -> Iterator[dict[str, Any]]:
    """status.json says running, then finished, failed, or waiting after a request to stop.

    Yields the facts that each of them states, to add to.
    """
    facts = {**dict(zip(("code_version", "dirty"), code_version())), "pid": os.getpid()}
    write_status(folder, "running", doing=doing, **facts)
    began = time.monotonic()
    try:
        yield facts
    except BaseException as error:
        state = "waiting" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "failed"
        with contextlib.suppress(ConfigError, OSError):  # a full disk hides no error
            write_status(folder, state, error=_one_line(error), **facts)
            write_log("".join(traceback.format_exception(error)))
        raise
    if read_status(folder)["state"] == "running":
        write_status(folder, "finished", seconds=round(time.monotonic() - began, 1),
                     trained_with=saved(folder / "checkpoints").code, **facts)


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


def _one_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
