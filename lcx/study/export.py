"""Rows as a flat table: a pandas frame, CSV, and Parquet where pyarrow is there."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcx.errors import ConfigError
from lcx.eval.rows import FIELDS
from lcx.labels import visible
from lcx.study.arms import Row, arm_of

NUMBERS = ("train_length", "length", "value", "low", "high", "documents", "tokens", "parameters",
           "flops_per_token", "state_size", "train_tokens", "learning_rate", "checkpoint_step")


def frame(rows: Sequence[Row]) -> Any:
    """Rows as a pandas DataFrame, with the arm's name as the first column.

    Raises ConfigError without pandas.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigError("a frame needs pandas: pip install lcx[report]") from None
    found = pandas.DataFrame([{**row, **_names(row)} for row in rows], columns=["arm", *FIELDS])
    for name in NUMBERS:  # 'unknown' becomes NaN
        found[name] = pandas.to_numeric(found[name], errors="coerce")
    return found


def write(rows: Sequence[Row], folder: Path) -> tuple[list[Path], str]:
    """Write rows.csv and rows.parquet, `extra` as JSON; returns the files and what is missing.

    Parquet needs pandas and pyarrow; without them there is a hint and the CSV.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", *FIELDS])
        for row in rows:
            told = {**row, **_names(row), "extra": json.dumps(row["extra"])}
            writer.writerow([told[name] for name in ("arm", *FIELDS)])
    parquet = folder / "rows.parquet"
    parquet.unlink(missing_ok=True)  # never one of older rows beside a new CSV
    try:
        import pyarrow  # noqa: F401

        table = frame(rows)
    except (ImportError, ConfigError):
        return [path], "no Parquet: pandas or pyarrow is missing; pip install lcx[report]"
    table["extra"] = table["extra"].map(json.dumps)
    for name in ("seed", "config_hash", "code_version"):
        table[name] = table[name].astype("string" if name != "seed" else "Int64")
    table.to_parquet(parquet, engine="pyarrow", index=False)
    return [path, parquet], ""


def _names(row: Row) -> dict[str, str]:
    """The arm's name; its scheme and mixer in full, without what breaks a cell."""
    return {"arm": arm_of(row).label(), "position": visible(row["position"]),
            "mixer": visible(row["mixer"])}
