"""From rows to a report: tables, figures, files and one HTML page."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcx.config import run_id
from lcx.config.stored import config_in
from lcx.errors import ConfigError
from lcx.study import caveats, export, figures, page, records, tables
from lcx.study.arms import Row
from lcx.study.distinct import distinguish, final
from lcx.study.overview import folder_of_member
from lcx.study.status import read_status


@dataclasses.dataclass(frozen=True)
class Report:
    """Where a report was written, and its table for the terminal."""

    page: Path
    figures: tuple[Path, ...]
    files: tuple[Path, ...]
    text: str
    warnings: tuple[str, ...]


def report(folder: str | Path, *, out: str | Path | None = None,
           mix_versions: bool = False) -> Report:
    """Read all rows under `folder`; write page, figures and rows to `out` (folder/report).

    Raises DataError where there are no rows, ConfigError without matplotlib, and where the rows
    come from several versions of the code (which `mix_versions` turns into a warning).
    """
    folder = Path(folder)
    rows = distinguish(records.read(folder, during=True))
    if not mix_versions:
        caveats.refuse_mixed(rows, folder)
    figures.matplotlib_or_hint()
    out = Path(out) if out else folder / "report"
    sweep = _read_json(folder / "sweep.json")
    members = [{**member, "state": read_status(folder_of_member(folder, member))["state"]}
               for member in sweep.get("members", [])]
    command = shlex.join(["lcx", "report", str(folder), *["--mix-versions"] * mix_versions])
    stamp = f"{command} | configs {configs_hash(rows)} | code {_versions(rows)}"
    warnings = caveats.warn(rows, members)
    files, hint = export.write(rows, out)
    drawn = figures.draw(rows, out / "figures", stamp)
    commands = [text for text in (sweep.get("command", ""), command) if text]
    text = page.page(folder.resolve().name, rows, drawn, stamp=stamp, warnings=warnings,
                     commands=commands, members=members, configs=_configs(folder),
                     files=[path.name for path in files])
    return Report(page.write(out / "report.html", text),
                  tuple(path for figure in drawn for path in figure.files), tuple(files),
                  tables.overview(final(rows)), (*warnings, *([hint] * bool(hint))))


def configs_hash(rows: Sequence[Row]) -> str:
    """A short hash over the config hashes of all rows."""
    text = ",".join(sorted({str(row["config_hash"]) for row in rows}))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _versions(rows: Sequence[Row]) -> str:
    return ", ".join(version.replace(" (dirty)", "+") for version in caveats.versions(rows))


def _configs(folder: Path) -> dict[str, dict[str, Any]]:
    return {_id(path.parent): _read_json(path) for path in sorted(folder.rglob("config.json"))
            if any((path.parent / name).is_file() for name in (records.NAME, records.DURING))}


def _id(folder: Path) -> str:
    """The id under which rows name the run of a folder."""
    try:
        return run_id(config_in(folder))
    except ConfigError:
        return folder.name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
