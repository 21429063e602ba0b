"""Where a run lies."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lcx.config import run_id
from lcx.errors import ConfigError
from lcx.labels import cut, one_line, why_no_file_name


def folder_of(config: ConfigDict) -> Path:
    """runs/<name>/<run id>; without a name (of a config of no file) runs/<run id>.

    Raises ConfigError where runtime.name is no folder's name.
    """
    name = config.runtime.name
    if why := name and why_no_file_name(name):
        raise ConfigError(f"runtime.name='{cut(one_line(name), 64)}' must be the name of one "
                          f"folder, but {why}; --config.runtime.out=FOLDER says where it lies")
    return Path(config.runtime.out).expanduser() / name / run_id(config)
