"""Search by Optuna: `space(trial)` in a config proposes overrides, a row's metric judges them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lcx.config import apply, load, load_space, parse_override, run_id, settled, validate
from lcx.domains import Count, Positive, checked
from lcx.errors import ConfigError
from lcx.labels import show
from lcx.study import describe, records
from lcx.study.preflight import lengths_of
from lcx.study.run_folder import folder_of
from lcx.study.status import locked
from lcx.study.sweep import Member, members_of, sweep


@dataclasses.dataclass(frozen=True)
class Trial:
    """One proposal and what came of it; value None: it failed."""

    number: int
    overrides: dict[str, Any]
    run: str
    value: float | None


@checked
def search(spec: str, overrides: Iterable[str] = (), *, trials: Count, metric: str = "bpb",
           length: Count | None = None, old: str = "refuse", timeout: Positive | None = None,
           command: str = "", say: Callable[[str], None] = show) -> list[Trial]:
    """Run trials until `trials` of them are done, those of earlier calls counted; best first.

    A trial is a sweep member in a process of its own, judged by the least `metric` at a context of
    `length` tokens (the longest one of the ladder by default). The study is kept in search.log
    beside the runs: after a kill the same call takes up the trial that was cut off. Raises
    ConfigError on a mistake, or where Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("search needs Optuna: pip install 'lcx[search]'")
    import optuna

    overrides, space = list(overrides), load_space(spec)
    base, start = load(spec, overrides), load(spec)
    experiment = base.experiment
    length = length or experiment.data.train_length * experiment.eval.max_factor
    if length not in (rungs := lengths_of(base)):
        raise ConfigError(f"--length {length} is none of the ladder's: "
                          + ", ".join(map(str, rungs)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    root = folder_of(base).parent
    root.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(root / "search.log"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend), study_name=f"{metric} at {length}",
        load_if_exists=True)
    with locked(root):  # the trials that seem to run are then those that were cut off
        for cut in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(cut.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(cut.params)  # the same run folder, which goes on where it was
        members: dict[str, Member] = {}
        while (number := len(_told(study))) < trials:
            # Another seed after each call, or a search that goes on would propose the same again.
            study.sampler = optuna.samplers.TPESampler(
                seed=spread(experiment.seed, len(study.trials)))
            trial = study.ask()
            proposed = dict(space(trial))
            config = settled(validate(apply(
                apply(start, proposed), map(parse_override, overrides))))
            if not config.runtime.label:
                config.runtime.label = describe.overrides_label(proposed)
            (member,) = members_of([config])
            members[run_id(config)] = member
            sweep(list(members.values()), jobs=1, timeout=timeout, old=old, command=command,
                  say=lambda text: None)
            value = _value(member, metric, length)
            trial.set_user_attr("run", run_id(config))
            trial.set_user_attr("overrides", json.dumps(proposed))
            study.tell(trial, math.inf if value is None else value)
            told = f"{metric} {value:.4f}" if value is not None else f"failed: {member.error}"
            say(f"[{number + 1}/{trials}] {member.label}: {told}")
    found = [Trial(t.number, json.loads(t.user_attrs["overrides"]), t.user_attrs["run"],
                   t.value if math.isfinite(t.value) else None) for t in _told(study)]
    return sorted(found, key=lambda t: (t.value is None, t.value or 0.0, t.number))


def spread(seed: int, number: int) -> int:
    """A sampler's seed for a trial; added, trial n of seed 1 would be trial n + 1 of seed 0."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _told(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def _value(member: Member, metric: str, length: int) -> float | None:
    """The metric of a finished member. Raises ConfigError where its rows have no such thing."""
    if member.state != "finished":
        return None
    rows = [row for row in records.read(Path(member.folder)) if row["method"] == "same_target"]
    found = [row for row in rows if (row["metric"], row["length"]) == (metric, length)]
    if not found:
        known = sorted({f"{row['metric']} at {row['length']}" for row in rows})
        raise ConfigError(f"no row has {metric} at {length}; there are: {', '.join(known)}")
    return found[0]["value"]
