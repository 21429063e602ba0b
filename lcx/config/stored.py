"""Runs that lie in folders: their config.json, the ids that they go by, and how to find one."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lcx.config.base import base_config
from lcx.config.check import validate
from lcx.config.content import without_content
from lcx.config.essence import SCHEMA, run_id
from lcx.config.identity import canonical_json, code_version, resolve
from lcx.config.layers import apply
from lcx.config.override import assign_all
from lcx.errors import ConfigError

ID = re.compile(r"[0-9a-f]{10}")
FILE = "config.json"
# What a run's config.json says beside the config: the code that resolved it, the schema of its id,
# and the ids that it went by under earlier schemas.
FACTS = ("code_version", "schema", "formerly")


def from_values(values: Mapping[str, Any]) -> ConfigDict:
    """The checked config of a resolved one (`resolve`, or a run's config.json)."""
    config = base_config()
    assign_all(config, resolve({key: values[key] for key in values if key not in FACTS}))
    return validate(config)


def read_values(folder: Path) -> dict[str, Any]:
    """A run's config.json. Raises ConfigError where there is none, or it is torn."""
    if not (folder / FILE).is_file():
        raise ConfigError(f"{folder} is not a run: it has no {FILE}; give a folder "
                          "runs/<name>/<run id>")
    try:
        values = json.loads((folder / FILE).read_text())
        if isinstance(values, dict):
            return values
        error = "not an object"
    except (OSError, ValueError) as found:
        error = found
    raise ConfigError(f"{folder / FILE} cannot be read ({error}); restore it from a copy of the "
                      "run")


def config_in(folder: Path) -> ConfigDict:
    """The config of a run's folder, as it was stored: no file but config.json is looked at."""
    return from_values(read_values(folder))


def facts(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """What config.json says beside a config, the earlier ids of what the folder holds included."""
    formerly = set()
    try:
        if is_run(folder, config):
            formerly = ids_in(folder) - {run_id(config)}
    except ConfigError:  # a new folder
        pass
    return {"code_version": code_version()[0], "schema": SCHEMA, "formerly": sorted(formerly)}


def ids_in(folder: Path) -> set[str]:
    """Every id that the run in a folder goes or went by. Raises ConfigError where there is none."""
    return {*_read(*_state(folder))[1]}


def is_run(folder: Path, config: ConfigDict) -> bool:
    """Whether a folder holds the run of a config; ConfigError where it holds none.

    A folder that was made before contents were hashed knows its corpus by the path alone: it is
    compared by the path, and by the content when its checkpoint is opened (`lcx.study.adopt`).
    """
    stored = _read(*_state(folder))[0]
    return run_id(with_start(stored, config)) == run_id(without_content(config, stored))


def with_start(stored: ConfigDict, config: ConfigDict) -> ConfigDict:
    """A stored config which names the run that it started from as `config` does.

    They may name one run by ids of two schemas; where they name two, nothing is changed.
    """
    before, now = (one.experiment.train.start_from for one in (stored, config))
    if before == now or None in (before, now) or (source := place_of(config)) is None:
        return stored
    try:
        same = {before, now} <= ids_in(source)
    except ConfigError:
        return stored
    return apply(stored, {"experiment.train.start_from": now}) if same else stored


def find(folders: Iterator[Path], wanted: ConfigDict | str) -> Path | None:
    """The first of some folders that are named by an id which holds a run, by its id or config."""
    for folder in folders:
        if not ID.fullmatch(folder.name):
            continue  # a copy, or what a user keeps beside
        try:
            if is_run(folder, wanted) if isinstance(wanted, ConfigDict) else \
                    wanted in ids_in(folder):
                return folder
        except ConfigError:
            continue
    return None


def place_of(config: ConfigDict) -> Path | None:
    """The folder of `experiment.train.start_from`, an id, or None where there is none."""
    if config.runtime.start_folder:
        return Path(config.runtime.start_folder).expanduser()
    out, wanted = Path(config.runtime.out).expanduser(), config.experiment.train.start_from
    return next(iter(sorted(out.glob(f"*/{wanted}"))), None) or find(out.glob("*/*"), wanted)


def _state(folder: Path) -> tuple[Path, int, int]:
    try:
        status = (folder / FILE).stat()
    except OSError:
        read_values(folder)  # says what is wrong
        raise
    return folder, status.st_mtime_ns, status.st_size


@functools.lru_cache(4096)  # a sweep of N members asks for N folders, N times
def _read(folder: Path, modified: int, size: int) -> tuple[ConfigDict, tuple[str, ...]]:
    values = read_values(folder)
    config = from_values(values)
    ids = {run_id(config), *values.get("formerly", ())}
    if "schema" not in values:  # schema 1 hashed all of `experiment` as it stands in the file
        text = canonical_json(values.get("experiment"))
        ids.add(hashlib.sha256(text.encode()).hexdigest()[:10])
    return config, tuple(sorted(ids))
