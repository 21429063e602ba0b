"""Starting from another run: the folder that a user names becomes the run id that is hashed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ml_collections import ConfigDict

from lcx.config.base import base_config
from lcx.config.check import validate
from lcx.config.identity import resolve, run_id
from lcx.config.override import assign_all
from lcx.errors import ConfigError

ID = re.compile(r"[0-9a-f]{10}")


def settled(config: ConfigDict) -> ConfigDict:
    """`experiment.train.start_from` as a run id, and `runtime.start_folder` as the place of it.

    So two copies of a run give their successors the same id. Raises ConfigError on what is neither
    a run id nor the folder of a run.
    """
    named = config.experiment.train.start_from
    if named is None or ID.fullmatch(named):
        return config
    folder = Path(named).expanduser()
    config.experiment.train.start_from = run_id(config_in(folder))
    config.runtime.start_folder = str(folder)
    return config


def config_in(folder: Path) -> ConfigDict:
    """The config of a run's folder. Raises ConfigError where there is none."""
    try:
        values = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"experiment.train.start_from='{folder}' is neither a run id (ten hex "
                          f"digits) nor the folder of a run ({error}); give runs/<name>/<run id>"
                          ) from None
    values.pop("code_version", None)
    config = base_config()
    assign_all(config, resolve(values))
    return validate(config)
