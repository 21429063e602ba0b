"""Which rows belong to one arm, and which of them draw a figure: names apart, checkpoints apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from lcx.study.arms import Row
from lcx.study.names import Facts, names
from lcx.study.spelling import flat


def distinguish(rows: Sequence[Row]) -> list[Row]:
    """Rows with their `arm`, whose name no other arm has; all else of them stays as it is stored.

    A run tested under another config than it was trained with is an arm of its own: YaRN over a
    RoPE checkpoint is not a model trained with YaRN. Arms of one name that still differ in more
    than the seed get their hash into it.
    """
    trained = {row["run"]: row for row in rows if row["run"] == row["config_hash"]}
    facts = [_facts(row, trained.get(row["run"])) for row in rows]
    known = names(facts)
    return [{**row, "arm": known[own]} for row, own in zip(rows, facts)]


def final(rows: Sequence[Row]) -> list[Row]:
    """The rows of the last checkpoint that each run was tested at, under each config."""
    last: dict[tuple, int] = {}
    for row in rows:
        last[_series(row)] = max(_step(row), last.get(_series(row), 0))
    return [row for row in rows if _step(row) == last[_series(row)]]


def repeated(rows: Iterable[Row]) -> list[Row]:
    """The rows of runs that were tested at several checkpoints, all of them."""
    rows, steps = list(rows), {}
    for row in rows:
        steps.setdefault(_series(row), set()).add(_step(row))
    return [row for row in rows if len(steps[_series(row)]) > 1]


def _series(row: Row) -> tuple:
    return row["run"], row["config_hash"]


def _step(row: Row) -> int:
    return row["checkpoint_step"] or 0


def _facts(row: Row, trained: Row | None) -> Facts:
    """What a row says of its arm; `trained`: a row of the same run under its own config."""
    extra = row["extra"] or {}
    own = Facts(str(row["position"]), str(row["mixer"]), _label(row), id=str(extra.get("arm", "")))
    if row["run"] == row["config_hash"]:
        return own
    changed = extra.get("override")
    others = [f"{path.rsplit('.', 1)[-1]}={value}" for path, value in (changed or {}).items()
              if not path.startswith("experiment.model.")]
    if trained is None:  # its label says what it is over
        return dataclasses.replace(own, tested=" ".join(others))
    was, label = (str(trained["position"]), str(trained["mixer"])), _label(trained)
    told = own.note.removeprefix(label).strip()
    for name in was:
        told = told.removeprefix(f"over {name}").strip()
    told = " ".join(part for part in (told, *others) if part)
    if changed is None and not told and was == (own.position, own.mixer):
        told = "another config"
    return dataclasses.replace(own, note=label, trained=was, tested=told)


def _label(row: Row) -> str:
    return flat(str((row["extra"] or {}).get("label") or ""))
