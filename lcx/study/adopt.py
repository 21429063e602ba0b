"""Folders of an earlier schema: they know files by path, and runs by old ids, until seen again."""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from lcx.config import apply, run_id
from lcx.config.content import SLOTS, unread
from lcx.config.stored import FILE, config_in, facts, ids_in, read_values, with_start
from lcx.errors import ConfigError
from lcx.study.preflight import model_of, with_data
from lcx.study.status import write_atomically
from lcx.train import checkpoint


def up_to_date(folder: Path, config: ConfigDict) -> bool:
    """False where a folder holds what may be this run, as an earlier schema described it."""
    try:
        stored = config_in(folder)
    except ConfigError:  # nothing there
        return True
    started = with_start(stored, config)
    if started is stored and not unread(config, stored):
        return True
    slots = {f"experiment.data.{slot}": stored.experiment.data[slot] for slot in SLOTS}
    return run_id(apply(config, slots)) != run_id(started)


def adopt(folder: Path, config: ConfigDict) -> bool:
    """Write into an older folder of the same run what a config knows: contents, the source's id.

    False where its checkpoint was trained on other text. An older run also knows its texts by name.
    """
    if up_to_date(folder, config):
        return True
    files = unread(config, config_in(folder))
    if files and checkpoint.steps(folder / "checkpoints"):
        full, data = with_data(config)
        batches = data.train_batches(model_of(full).data_transform())
        if not batches.knows(checkpoint.saved(folder / "checkpoints").data):
            return False
    formerly, values = ids_in(folder), read_values(folder)
    values["experiment"]["train"]["start_from"] = config.experiment.train.start_from
    for slot in files:
        values["experiment"]["data"][slot] = dict(config.experiment.data[slot])
    told = facts(config, folder)
    told["formerly"] = sorted((formerly | {*told["formerly"]}) - {run_id(config)})
    told["code_version"] = values.get("code_version", "unknown")
    write_atomically(folder / FILE, json.dumps({**values, **told}, sort_keys=True) + "\n")
    return True
