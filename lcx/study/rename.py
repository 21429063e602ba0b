"""Rows under the ids of today: of a run folder whose rows were named under an earlier schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcx.config import apply, run_id, validate
from lcx.config.stored import config_in, ids_in
from lcx.errors import ConfigError
from lcx.study import describe


def renamed(rows: Sequence[dict[str, Any]], folder: Path) -> Sequence[dict[str, Any]]:
    """The rows of a run's folder, whose run, config hash and arm are those of its config.json.

    Rows that name the run by an id that it went by before are old; others are left alone. A row
    under a test-time override gets the hash of the config that its `override` makes. Rows without
    a config.json beside them stay as they are.
    """
    try:
        own = config_in(folder)
    except ConfigError:
        return rows
    run, known = run_id(own), ids_in(folder)
    hashes: dict[str, tuple[str, str] | None] = {}  # of each config that old rows were made under

    def today(row: dict[str, Any]) -> dict[str, Any]:
        if row["run"] == run or row["run"] not in known:
            return row
        extra, was = row["extra"] or {}, row["config_hash"]
        if was not in hashes:
            hashes[was] = _hashes(own, None if was == row["run"] else extra.get("override") or {})
        if hashes[was] is None:
            return {**row, "run": run}
        config_hash, arm = hashes[was]
        return {**row, "run": run, "config_hash": config_hash, "extra": {**extra, "arm": arm}}
    return [today(row) for row in rows]


def _hashes(own: Any, override: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """(config hash, arm) of a run's config under an override; None where they cannot be told."""
    if override is None:
        return run_id(own), describe.arm_id(own)
    if not override:
        return None  # something outside of model and evaluation: it stays apart under its old hash
    try:
        other = validate(apply(own, {**override, "experiment.eval.overrides": None,
                                     "experiment.eval.every": 0}))
    except ConfigError:
        return None
    return run_id(other), describe.arm_id(other)
