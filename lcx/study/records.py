"""Result rows on disk: a JSON object per line, appended whole, read with a torn tail set aside."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lcx.errors import ConfigError, DataError, did_you_mean
from lcx.eval.rows import FIELDS
from lcx.study.rename import renamed

log = logging.getLogger("lcx.study")
NAME = "rows.jsonl"
DURING = "during.jsonl"  # the rows of ladders during training


def append(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a file in one write under a lock; a torn tail moves to `<path>.torn` first.

    Raises ConfigError on a field that no row has, DataError where the disk is full or read-only.
    """
    path = Path(path)
    lines = "".join(_line(row) for row in rows).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released on close, and by a kill
            _set_torn_tail_aside(file, path)
            end = file.seek(0, os.SEEK_END)
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)  # all of the rows or none
                raise
    except OSError as error:
        raise DataError(f"cannot write {len(lines)} bytes of rows to {path}: {error.strerror}; "
                        "free space or choose another --config.runtime.out") from error


def read(path: str | Path, *, during: bool = False) -> list[dict[str, Any]]:
    """The rows of a file, or of all rows.jsonl under a folder, in the order of their paths.

    `during`: also those of ladders during training, which say their checkpoint_step. A row measured
    twice (`lcx eval` run again) counts once, the last time. Rows that were named under an earlier
    schema of ids come under the ids of today, where their run's config.json lies beside them. Lines
    that are not whole are passed over with a warning that names file and line. Raises DataError
    where nothing was ever written.
    """
    path = Path(path)
    names = (NAME, DURING) if during else (NAME,)
    files = [path] if path.is_file() else sorted(  # rows.jsonl last: it has the final word
        (file for name in names for file in path.rglob(name)),
        key=lambda file: (file.parent, names.index(file.name) == 0))
    if not files:
        raise DataError(f"no {NAME} under {path}; train and evaluate first: "
                        "lcx sweep CONFIG, or lcx train CONFIG")
    rows = {}
    for file in files:
        for row in renamed(_read_file(file), file.parent):
            rows.pop(key := identity(row), None)
            rows[key] = row
    return list(rows.values())


def frame(path: str | Path):
    """The rows as a pandas DataFrame (pandas is not a dependency of lcx: pip install pandas)."""
    import pandas

    return pandas.DataFrame(read(path), columns=list(FIELDS))


def identity(row: Mapping[str, Any]) -> str:
    """What makes two rows the same measurement: everything but what was measured, and how well."""
    measured = ("value", "low", "high", "documents", "tokens", "code_version", "dirty", "extra")
    return json.dumps({name: v for name, v in row.items() if name not in measured}, sort_keys=True)


def _line(row: Mapping[str, Any]) -> str:
    for name in row:
        if name not in FIELDS:
            raise ConfigError(f"a row has no field '{name}'" + did_you_mean(name, FIELDS))
    missing = [name for name in FIELDS if name not in row]
    if missing:
        raise ConfigError(f"a row needs all its fields; missing: {', '.join(missing)}")
    try:
        return json.dumps({name: row[name] for name in FIELDS}, allow_nan=False) + "\n"
    except ValueError:
        raise ConfigError("a row holds NaN or an infinity; write None and say why in "
                          "extra['status']") from None


def _set_torn_tail_aside(file, path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size == 0 or file.read(1) == b"\n":
        return
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.seek(whole)
    with open(f"{path}.torn", "ab") as aside:
        aside.write(file.read() + b"\n")
    file.truncate(whole)
    log.warning("%s: a torn last row (a killed writer) was moved to %s.torn", path, path)


def _read_file(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError:
            log.warning("%s:%d: not a whole row; passed over", path, number)
            continue
        rows.append({name: row.get(name) for name in FIELDS})
    return rows
