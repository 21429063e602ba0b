"""Where a run lies, or lay before ids had the schema that they have now."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lcx.config import apply, run_id, settled
from lcx.config.stored import find
from lcx.errors import ConfigError
from lcx.labels import cut, one_line, why_no_file_name


def folder_of(config: ConfigDict) -> Path:
    """runs/<name>/<run id>, or the folder beside it that holds this run under an earlier id.

    Without a name (of a config of no file) runs/<run id>. Files that the experiment reads are
    hashed for it, unless their content is known. Raises ConfigError where runtime.name is no
    folder's name, DataError where files are missing.
    """
    name = config.runtime.name
    if why := name and why_no_file_name(name):
        raise ConfigError(f"runtime.name='{cut(one_line(name), 64)}' must be the name of one "
                          f"folder, but {why}; --config.runtime.out=FOLDER says where it lies")
    config = settled(apply(config, {}))
    home = Path(config.runtime.out).expanduser() / name
    own = home / run_id(config)
    return own if own.exists() else find(sorted(home.glob("*")), config) or own
