"""The length ladder over a run: at its end, under test-time overrides, and while it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lcx import data as data_library
from lcx import sharding
from lcx.config import code_version
from lcx.config.stored import config_in
from lcx.eval.exact import exact_match
from lcx.eval.ladder import ladder
from lcx.ops.attention import api as attention
from lcx.study import describe, records
from lcx.study.here import stored_config
from lcx.study.preflight import documents_of
from lcx.study.restore import Run, fairness, open_run
from lcx.study.under import variants
from lcx.train.state import Constants, TrainState

DURING = "during.jsonl"  # rows of the ladders during training; reports read rows.jsonl


def evaluate_all(folder: str | Path, config: ConfigDict | None = None) -> list[dict[str, Any]]:
    """A run's ladder, and one more under each of its experiment.eval.overrides; all of its rows.

    config: the run's own, with the runtime and the places of files that hold now.
    """
    folder, seen = Path(folder), []
    config = config or stored_config(folder)
    rows = evaluate(folder, config, seen, replace=True)
    for variant in variants(config):
        rows += evaluate(folder, variant, seen)
    return rows


def evaluate(folder: str | Path, config: ConfigDict | None = None,
             seen: list[Run] | None = None, *, replace: bool = False) -> list[dict[str, Any]]:
    """Walk the length ladder with a run's last checkpoint, and write its rows.

    With `config` (the run's own under overrides) rows are added; without, or to `replace`, they
    replace those of an evaluation that did not come to its end. `seen` gathers what other
    evaluations in this process need not compile again.
    """
    folder = Path(folder)
    run, found = open_run(folder, config, seen or (), with_corpus=True), []
    if seen is not None:
        seen.append(run.program())
    facts = fairness(run)
    rows = _walk(run, facts)
    if replace or config is None:
        (folder / records.NAME).unlink(missing_ok=True)
    for row in rows:
        records.append(folder / records.NAME, [row])
        found.append(row)
    return found


def during(config: ConfigDict, data: data_library.Data, model: Any, folder: Path
           ) -> Callable[[TrainState, Constants, int, int], None]:
    """What training calls every experiment.eval.every steps: the ladder, into during.jsonl.

    Its rows say their checkpoint_step and train_tokens, so that the gap against tokens seen is a
    curve. A step that is reached again after a kill is measured again, and counts once when read.
    """
    def measure(state: TrainState, constants: Constants, step: int, tokens: int) -> None:
        run = Run(folder, config, lambda: data, data.tokenizer, model,
                  {"params": state.params, **constants.variables}, step, (code_version()[0],))
        facts = {**fairness(run), "train_tokens": tokens}
        records.append(folder / DURING, list(_walk(run, facts)))

    return measure


def _walk(run: Run, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    extra = _extra(run)
    with jax.set_mesh(sharding.make_mesh(**run.config.runtime.mesh)), \
            attention.backend(run.config.runtime.backend):
        for row in rows_of(run.data, run, facts):
            row["extra"] |= extra
            yield row


@functools.singledispatch
def rows_of(data: Any, run: Run, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a run's ladder; one function per kind of data."""
    raise TypeError(f"no ladder for data of type {type(data).__name__}")


@rows_of.register
def _(data: data_library.Data, run: Run, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    options = run.config.experiment.eval
    counts = np.zeros(run.model.vocab_size, np.int64)
    known = data.splits["train"].counts
    counts[:len(known)] = known
    return ladder(
        run.model, run.variables, documents_of(run.config, data),
        train_length=run.config.experiment.data.train_length,
        max_factor=options.max_factor, fairness=facts, targets=options.targets,
        seed=options.seed, batch_tokens=options.batch_tokens, unigram=counts,
        chunk=options.chunk, shuffled_prefix=options.shuffled_prefix,
        resamples=options.resamples)


@rows_of.register
def _(data: data_library.TaskData, run: Run, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    options = run.config.experiment.eval
    told = data.describe()
    return exact_match(
        run.model, run.variables,
        lambda length: data.test_rows(length, options.targets, split=options.split,
                                      seed=options.seed),
        train_length=run.config.experiment.data.train_length, max_factor=options.max_factor,
        fairness=facts, batch_tokens=options.batch_tokens, chunk=options.chunk,
        resamples=options.resamples,
        extra={"task": told, "chance": told["chance"], "evaluation_seed": options.seed})


def _extra(run: Run) -> dict[str, Any]:
    """What else a row says: its arm, its data, the code that trained, and what an override did."""
    own, config = config_in(run.folder), run.config
    changes = describe.changes(own, config)
    label = [config.runtime.label, describe.test_time(own, config)]
    found = {"arm": describe.arm_id(config), "split": config.experiment.eval.split,
             "data": run.data.content_hash, "trained_with": ", ".join(run.trained_with),
             "dtype": config.experiment.model.dtype,
             "label": " ".join(part for part in label if part),
             "override": changes, "dropped": list(run.dropped),
             "initialised": list(run.initialised)}
    kept = ("arm", "split", "data", "trained_with", "dtype")
    return {name: value for name, value in found.items() if value or name in kept}
