"""One run, from its config to its rows: data, model, training, the length ladder."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lcx import train
from lcx.config import apply, code_version, parse_override, parse_short, resolve, run_id, settled
from lcx.config.stored import config_in, facts
from lcx.data import tokenizer_of
from lcx.errors import ConfigError
from lcx.labels import visible
from lcx.ops.attention import api as attention
from lcx.study.adopt import adopt, up_to_date
from lcx.study.evaluate import during, evaluate, evaluate_all
from lcx.study.here import stored_config
from lcx.study.logs import Plain
from lcx.study.preflight import (
    check,
    check_reach,
    model_of,
    use_compile_cache,
    with_data,
)
from lcx.study.run_folder import folder_of
from lcx.study.start import source_of
from lcx.study.status import locked, read_status, write_atomically, write_status
from lcx.study.under import under, variants
from lcx.study.versions import settle
from lcx.train import checkpoint
from lcx.train.checkpoint import saved
from lcx.train.start import start_from

log = logging.getLogger("lcx.study")


def run_member(config: ConfigDict, folder: str | Path | None = None, *,
               test: bool = True, old: str = "refuse") -> dict[str, Any]:
    """Train and evaluate one config in its folder; returns its status. A finished one is skipped.

    A half-done run goes on from its last checkpoint; without `test` it stops before the ladder.
    `old` says what happens to results of other code: refuse (OtherVersion), keep or rerun.
    Whatever ends it is written to status.json and raised again. Raises Busy where another process
    holds the folder.
    """
    config = settled(apply(config, {}))
    folder = Path(folder or folder_of(config))
    with locked(folder), _logged(folder) as write_log:
        settle(folder, old)
        if not adopt(folder, config):
            raise ConfigError(
                f"{folder} was trained on other text than lies at its paths now: restore that, or "
                "train anew under another --config.runtime.name")
        if (status := read_status(folder))["state"] == "finished":
            return status
        write_atomically(folder / "config.json", json.dumps(
            {**resolve(config), **facts(config, folder)}, sort_keys=True) + "\n")
        with _status(folder, write_log, "training") as now:
            began = time.monotonic()
            train_member(config, folder)
            now["train_seconds"] = round(time.monotonic() - began, 1)
            if not test:
                return write_status(folder, "waiting", note="trained, not evaluated", **now)
            write_status(folder, "running", doing="evaluating", **now)
            evaluate_all(folder, config)
        return read_status(folder)


def evaluate_member(folder: str | Path, overrides: Sequence[str] = (),
                    schemes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Evaluate a trained run, under its own config or with overrides; returns the new rows.

    `overrides` are of the form experiment.eval.max_factor=32 and all hold at once; each of
    `schemes` (position=yarn,factor=8) is an evaluation of its own. Raises ConfigError on one that
    reaches nothing; one that says what the run has anyway gives the run's own rows.
    """
    folder = Path(folder)
    config = stored_config(folder, [parse_override(text) for text in overrides])
    if not up_to_date(folder, config):
        with locked(folder):
            adopt(folder, config)
    ways = [under(config, [parse_short(text)]) for text in schemes]
    if not ways and run_id(config) != run_id(config_in(folder)):
        ways = [config]
    for way in ways or [config]:
        check(way, training=False)
    with locked(folder), _logged(folder) as write_log:
        for text, way in zip(schemes, ways):
            if run_id(way) == run_id(config):
                log.warning("%s changes nothing: the rows are those without it", text)
        if not ways:
            with _status(folder, write_log, "evaluating"):
                return evaluate_all(folder, config)
        seen = []
        return [row for way in ways for row in evaluate(folder, way, seen)]


def train_member(config: ConfigDict, folder: Path) -> None:
    """Train to the last step; the parameters are in the folder's checkpoints."""
    check(config)
    use_compile_cache(config)
    folder.mkdir(parents=True, exist_ok=True)
    full, data = with_data(config, tokenizer_of(config.experiment.data, folder))
    data.keep(folder)
    for one in (full, *variants(full)):
        check_reach(data, one)  # what the ladder would refuse after training is refused now
    model = model_of(full)
    source = None if checkpoint.steps(folder / "checkpoints") else source_of(config)
    with attention.backend(config.runtime.backend):
        train.train(full, data.train_batches(model.data_transform()), folder, model=model,
                    code_version=code_version()[0], measure=during(config, data, model, folder),
                    start=source and functools.partial(start_from, source))


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
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(Plain("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("lcx")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield lambda text: handler.stream.write(visible(text, keep="\n\t"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def _one_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
