"""What a config names by its place on this machine becomes what is hashed: an id, a digest."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lcx.config.content import with_content
from lcx.config.essence import run_id
from lcx.config.stored import ID, config_in, ids_in, place_of
from lcx.errors import ConfigError


def settled(config: ConfigDict, known: dict[str, str] | None = None) -> ConfigDict:
    """`experiment.train.start_from` as a run id, with `runtime.start_folder` as the place of it,
    and the `content` of files (`with_content`, which `known` is for).

    So two copies of a run give their successors the same id. Raises ConfigError on what is neither
    a run id nor the folder of a run, DataError on files that cannot be read.
    """
    named = config.experiment.train.start_from
    if named is not None and not ID.fullmatch(named):
        folder = Path(named).expanduser()
        try:
            config.experiment.train.start_from = run_id(config_in(folder))
        except ConfigError as error:
            raise ConfigError(f"experiment.train.start_from='{folder}' is neither a run id (ten "
                              f"hex digits) nor the folder of a run ({error})") from None
        config.runtime.start_folder = str(folder)
    elif named is not None and (folder := place_of(config)):
        try:
            if named in ids_in(folder):  # perhaps an id of an earlier schema
                config.experiment.train.start_from = run_id(config_in(folder))
        except ConfigError:  # `source_of` says so, where it is needed
            pass
    return with_content(config, known)
