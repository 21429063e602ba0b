"""A stored run on this machine: what its config says of the machine that trained it is no law."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lcx import sharding
from lcx.config import base_config, resolve
from lcx.config.layers import Changes
from lcx.config.stored import config_in
from lcx.errors import ConfigError
from lcx.ops.attention import api as attention
from lcx.study.under import MEASURED, under

log = logging.getLogger("lcx.study")


def stored_config(folder: Path, overrides: Changes = (),
                  matters: Mapping[str, Collection[str]] = MEASURED) -> ConfigDict:
    """A run's own config, as this machine can open it, under overrides, which must all be possible.

    overrides, matters: of `under`. No corpus is looked at unless an override names another one.
    Raises ConfigError where the folder is no run or an override is wrong, DataError where a corpus
    that an override names has no text.
    """
    config = here(config_in(folder))
    return under(config, overrides, matters) if overrides else config


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
