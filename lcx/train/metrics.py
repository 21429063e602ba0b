"""metrics.jsonl: one JSON object per logged step; `time` holds what differs between equal runs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcx.errors import DataError

log = logging.getLogger(__name__)


class MetricsFile:
    """Appends rows. Opening it to go on from `step` drops rows of later steps and a torn tail."""

    def __init__(self, path: str | os.PathLike, step: int = 0):
        self.path = Path(path)
        kept = [row for row in read(self.path) if row["step"] <= step]
        text = "".join(_line(row) for row in kept)
        if not self.path.exists() or self.path.read_text(errors="replace") != text:
            temporary = self.path.with_name(self.path.name + ".tmp")
            temporary.write_text(text)
            os.replace(temporary, self.path)
        self._file = open(self.path, "a")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. Raises DataError where the disk is full."""
        line = _line(row)
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise DataError(f"cannot write {len(line)} bytes to {self.path}: {error.strerror}; "
                            "free space or choose another runtime.out") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what `append` could not write has been said
            self._file.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics file; a line torn by a crash is left out with a warning."""
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, TypeError, KeyError):
            log.warning("%s line %d is torn and is left out", path, number)
            continue
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
