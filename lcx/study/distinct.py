"""Which rows belong to one arm, and which of them draw a figure: names apart, checkpoints apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lcx.study.arms import Arm, Row, arm_of


def distinguish(rows: Sequence[Row]) -> list[Row]:
    """Rows whose label tells all arms apart.

    A run tested under another config than it was trained with is an arm of its own: YaRN over a
    RoPE checkpoint is not a model trained with YaRN. Arms of one name that still differ in more
    than the seed get their hash into the label.
    """
    trained = {row["run"]: row for row in rows if row["run"] == row["config_hash"]}
    rows = [_noted(row, _test_time(row, trained.get(row["run"]))) for row in rows]
    hashes: dict[Arm, set[str]] = {}
    for row in rows:
        hashes.setdefault(arm_of(row), set()).add(_hash(row))
    return [_noted(row, f"#{_hash(row)[:4]}") if len(hashes[arm_of(row)]) > 1 else row
            for row in rows]


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


def _hash(row: Row) -> str:
    return (row["extra"] or {}).get("arm", "")


def _test_time(row: Row, trained: Row | None) -> str:
    """What a row's label must still say where it was tested under another config: "over rope"."""
    if row["run"] == row["config_hash"]:
        return ""
    changed = (row["extra"] or {}).get("override")
    if changed is not None:  # an evaluation labels what it changes of the model by itself
        return " ".join(f"{path.rsplit('.', 1)[-1]}={value}" for path, value in changed.items()
                        if not path.startswith("experiment.model."))
    told = [f"over {trained[key]}" for key in ("position", "mixer")
            if trained is not None and trained[key] != row[key]]
    return " ".join(told) or "overridden at test"


def _noted(row: Row, note: str) -> Row:
    extra = row["extra"] or {}
    label = " ".join(part for part in (extra.get("label", ""), note) if part)
    return {**row, "extra": {**extra, "label": label}} if note else row
