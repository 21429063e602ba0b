"""Where a run lies."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lcx.config import run_id


def folder_of(config: ConfigDict) -> Path:
    """runs/<name>/<run id>."""
    return Path(config.runtime.out).expanduser() / config.runtime.name / run_id(config)
