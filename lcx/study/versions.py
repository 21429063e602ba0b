"""What other code has made: found before it is counted as done or gone on with, and the choice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from lcx.config.identity import code_version
from lcx.errors import ConfigError
from lcx.study.status import read_status

CHOICES = ("refuse", "keep", "rerun")
OLD = "old"  # a run folder's results of other code, numbered


class OtherVersion(ConfigError):
    """Results or checkpoints are of another version of the code; nobody said what to do."""


def others(folder: str | Path) -> list[str]:
    """The versions, other than this code's, behind what a run folder holds; [] for nothing."""
    folder = Path(folder)
    status = read_status(folder)
    if status["state"] != "finished" and not any((folder / "checkpoints").glob("[0-9]*")):
        return []  # nothing that could be reused
    known = status.get("code_version") or _of_config(folder)
    return sorted({known, *status.get("trained_with", ())} - {code_version()[0]})


def refuse(found: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise OtherVersion where any of (run, its other versions) has some."""
    told = [f"{name} ({', '.join(versions)})" for name, versions in found if versions]
    if told:
        raise OtherVersion(
            f"made by other code than {code_version()[0]}: {'; '.join(told)}. Say --rerun to "
            f"measure it again (the old results move to {OLD}/ in its folder) or --keep-old to "
            "count it as it is and go on from its checkpoints")


def settle(folder: str | Path, choice: str) -> None:
    """Act on what other code left in a folder that is held: refuse, keep, or put it aside."""
    if choice not in CHOICES:
        raise ConfigError(f"results of other code: '{choice}' is none of {', '.join(CHOICES)}")
    folder = Path(folder)
    if not (found := others(folder)) or choice == "keep":
        return
    if choice == "refuse":
        refuse([(str(folder), found)])
    attic = folder / OLD
    attic.mkdir(exist_ok=True)
    target = attic / str(len(list(attic.iterdir())))
    target.mkdir()
    for entry in sorted(folder.iterdir()):
        if entry.name not in (OLD, "member.lock", "lock", "log.txt"):
            # A reader of all rows.jsonl below must not find the old ones.
            os.replace(entry, target / entry.name.replace(".jsonl", ".old.jsonl"))


def _of_config(folder: Path) -> str:
    try:
        return json.loads((folder / "config.json").read_text()).get("code_version", "unknown")
    except (OSError, ValueError, AttributeError):
        return "unknown"
