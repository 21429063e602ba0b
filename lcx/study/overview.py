"""How far each run of a study is, read from its files alone: no jax, no lock, nothing written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcx.errors import DataError
from lcx.labels import columns, cut, one_line, pad
from lcx.study.names import WIDTH, member_name
from lcx.study.spelling import flat
from lcx.study.status import held, read_status
from lcx.study.versions import OLD

BAD = ("failed", "killed")
COLUMNS = ("run", "state", "step", "loss", "tokens/s", "left", "arm")


def overview(folder: str | Path) -> list[dict[str, Any]]:
    """One record per run under a folder, those that a sweep has yet to start included.

    state: waiting, running, finished, failed or killed (running once, but nothing holds it now).
    Raises DataError where there is no run.
    """
    folder = Path(folder)
    found = {}
    for sweep in sorted(folder.rglob("sweep.json")):
        for member in _read_json(sweep).get("members", []):
            found[folder_of_member(sweep.parent, member)] = member
    for config in sorted(folder.rglob("config.json")):
        if OLD not in config.relative_to(folder).parts:
            found.setdefault(config.parent, {})
    if not found:
        raise DataError(f"no run under {folder}; give the folder runs/<name> of a sweep, or a run")
    return [_record(run, member) for run, member in found.items()]


def folder_of_member(root: Path, member: Mapping[str, Any]) -> Path:
    """Where a member of a sweep.json lies: under its id, or a former one. The study may move."""
    return root / Path(member.get("folder") or member["run"]).name


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records for a terminal, errors in full beneath, and how many are in which state."""
    lines = [COLUMNS] + [_line(record) for record in records]
    widths = [max(columns(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = ["  ".join(pad(cell, w) for cell, w in zip(line, widths)).rstrip() for line in lines]
    text += [f"{r['run']}: {one_line(r['error'])}" for r in records if r["error"]]
    counts = Counter(record["state"] for record in records)
    return "\n".join([*text, ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))])


def _record(run: Path, member: Mapping[str, Any]) -> dict[str, Any]:
    status, config = read_status(run), _read_json(run / "config.json")
    state, error = status["state"], status.get("error") or ""
    if state == "running" and not held(run):
        state, error = "killed", "its process is gone; the same command goes on with it"
    last = _last_row(run / "metrics.jsonl")
    steps = config.get("experiment", {}).get("train", {}).get("steps")
    rate, step = last.get("time", {}).get("tokens_per_second"), last.get("step", 0)
    left = None
    if state == "running" and rate and steps:
        left = round((steps - step) * last["tokens"] / rate, 1)
    label = flat(str(member.get("label") or config.get("runtime", {}).get("label") or ""))
    arm = label and cut(one_line(label), WIDTH)
    return dict(run=run.name, arm=member_name(member) if member else arm, state=state,
                doing=status.get("doing", "") if state == "running" else "", step=step,
                steps=steps, loss=last.get("loss"), tokens_per_second=rate, seconds_left=left,
                seconds=status.get("seconds"), error=error, folder=str(run))


def _line(record: Mapping[str, Any]) -> tuple[str, ...]:
    step = f"{record['step']}/{record['steps']}" if record["steps"] else ""
    loss = "" if record["loss"] is None else f"{record['loss']:.4f}"
    rate = f"{record['tokens_per_second']:,.0f}" if record["tokens_per_second"] else ""
    left = record["seconds_left"]
    left = "" if left is None else f"{int(left) // 60}:{int(left) % 60:02d}"
    return (record["run"], record["doing"] or record["state"], step, loss, rate, left,
            one_line(record["arm"]))


def _last_row(path: Path, tail: int = 8192) -> dict[str, Any]:
    """The last whole row of a metrics file, whatever its size."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - tail))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            if isinstance(row := json.loads(line), dict):
                return row
        except ValueError:
            continue
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
