"""A stored run on this machine: what its config says of the machine that trained it is no law."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lcx import sharding
from lcx.config import assign, base_config, parse_override, resolve, settled, validate
from lcx.config.stored import config_in
from lcx.errors import ConfigError
from lcx.ops.attention import api as attention

log = logging.getLogger("lcx.study")


def stored_config(folder: Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> ConfigDict:
    """A run's own config, as this machine can open it, under overrides, which must all be possible.

    No corpus is looked at unless an override names another one. Raises ConfigError where the folder
    is no run or an override is wrong, DataError where a corpus that an override names has no text.
    """
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else \
        [parse_override(text) for text in overrides]
    config = here(config_in(folder))
    for path, value in pairs:
        assign(config, path, value)
    validate(config)
    if any(path.startswith("experiment.data.") for path, _ in pairs):
        settled(config)
    return config


def here(config: ConfigDict) -> ConfigDict:
    """`runtime` with what cannot be had here at its default: mesh, backend, folders of caches.

    Each change is in the log. What decides the numbers lies in `experiment` and is left alone.
    """
    runtime, default = config.runtime, base_config().runtime
    try:
        sharding.make_mesh(**runtime.mesh)
    except ConfigError:
        _tell("mesh", resolve(runtime.mesh), resolve(default.mesh),
              f"devices here: {jax.device_count()}")
        runtime.mesh = default.mesh
    if not attention.available(runtime.backend):
        _tell("backend", runtime.backend, default.backend, f"here: {jax.default_backend()}")
        runtime.backend = default.backend
    for key in ("data_cache", "compile_cache"):
        where = runtime[key]
        if where and where != default[key] and not Path(where).expanduser().is_dir():
            _tell(key, where, default[key], "there is no such folder", logging.INFO)
            runtime[key] = default[key]
    return config


def _tell(key: str, stored: Any, new: Any, why: str, level: int = logging.WARNING) -> None:
    log.log(level, "the run's runtime.%s=%s is of another machine (%s); %r is taken", key, stored,
            why, new)
