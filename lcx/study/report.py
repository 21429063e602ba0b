"""From rows to a report: tables, figures and one HTML page."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcx.study import figures, page, records, tables
from lcx.study.arms import Row
from lcx.study.status import read_status


@dataclasses.dataclass(frozen=True)
class Report:
    """Where a report was written, and its table for the terminal."""

    page: Path
    figures: tuple[Path, ...]
    text: str
    warnings: tuple[str, ...]


def report(folder: str | Path, *, out: str | Path | None = None, command: str = "") -> Report:
    """Read all rows under `folder`, write `report.html` and its figures to `out` (folder/report).

    Raises DataError where there are no rows, ConfigError without matplotlib.
    """
    folder = Path(folder)
    rows = distinguish(records.read(folder))
    figures.matplotlib_or_hint()
    out = Path(out) if out else folder / "report"
    sweep = _read_json(folder / "sweep.json")
    members = [{**member, "state": read_status(folder / member["run"])["state"]}
               for member in sweep.get("members", [])]
    command = command or f"lcx report {folder}"
    stamp = f"{command} | configs {configs_hash(rows)} | code {_versions(rows)}"
    warnings = warn(rows, members)
    drawn = figures.draw(rows, out / "figures", stamp)
    text = page.page(folder.resolve().name, rows, drawn, stamp=stamp, warnings=warnings,
                     command=sweep.get("command", "") or command, members=members,
                     configs=_configs(folder))
    return Report(page.write(out / "report.html", text),
                  tuple(path for figure in drawn for path in figure.files),
                  tables.text(tables.by_length(rows)), tuple(warnings))


def distinguish(rows: Sequence[Row]) -> list[Row]:
    """Arms of one name that differ in more than the seed get their hash into the label."""
    hashes: dict[tuple, set[str]] = {}
    key = lambda row: (row["position"], row["mixer"], (row["extra"] or {}).get("label", ""))
    for row in rows:
        hashes.setdefault(key(row), set()).add((row["extra"] or {}).get("arm", ""))
    found = []
    for row in rows:
        if len(hashes[key(row)]) > 1:
            extra = row["extra"] or {}
            note = f"{extra.get('label', '')} #{extra.get('arm', '')[:4]}".strip()
            row = {**row, "extra": {**extra, "label": note}}
        found.append(row)
    return found


def warn(rows: Sequence[Row], members: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What a reader must know before comparing these rows."""
    found = []
    versions = sorted({f"{r['code_version']}{' (dirty)' if r['dirty'] else ''}" for r in rows})
    if len(versions) > 1:
        found.append("These rows come from different versions of the code, so that a difference "
                     f"between arms may be one between versions: {', '.join(versions)}.")
    elif rows and rows[0]["dirty"]:
        found.append("The code had changes that are in no commit: these numbers cannot be "
                     "reproduced from the version they name.")
    lengths = sorted({row["train_length"] for row in rows})
    if len(lengths) > 1:
        found.append(f"These arms were trained at different lengths: {lengths}.")
    targets = {(row["extra"] or {}).get("targets") for row in rows if row["metric"] == "bpb"}
    if len(targets) > 1:
        found.append("These arms were scored on different target tokens: compare their gaps, not "
                     "their levels.")
    lost = [f"{row['position']}, {row['mixer']} at {row['length']}: "
            f"{(row['extra'] or {}).get('status')}" for row in rows
            if row["metric"] == "bpb" and row["value"] is None]
    if lost:
        found.append(f"Without a value: {'; '.join(lost)}.")
    failed = [f"{m['position']}, {m['mixer']}, seed {m['seed']} ({m['state']})" for m in members
              if m.get("state") not in ("finished", None)]
    if failed:
        found.append(f"{len(failed)} of {len(members)} runs are not in this report or not whole: "
                     f"{'; '.join(failed)}.")
    if rows and not all(row["learning_rate_tuned"] for row in rows):
        found.append("The learning rate was not tuned for each arm: a worse arm may only be one "
                     "with a worse rate.")
    return found


def configs_hash(rows: Sequence[Row]) -> str:
    """A short hash over the config hashes of all rows."""
    text = ",".join(sorted({str(row["config_hash"]) for row in rows}))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _versions(rows: Sequence[Row]) -> str:
    return ", ".join(sorted({f"{row['code_version']}{'+' if row['dirty'] else ''}"
                             for row in rows}))


def _configs(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("config.json")):
        if (path.parent / records.NAME).is_file():
            found[path.parent.name] = json.dumps(_read_json(path), indent=1)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
