"""Folders from before contents were hashed: they know their files by path, until seen again."""

from __future__ import annotations

import json
from pathlib import Path

from ml_collections import ConfigDict

from lcx.config import apply, run_id
from lcx.config.content import SLOTS, unread
from lcx.config.stored import FILE, config_in, facts, ids_in, read_values
from lcx.errors import ConfigError
from lcx.study.preflight import model_of, with_data
from lcx.study.status import write_atomically
from lcx.train import checkpoint


def knows_content(folder: Path, config: ConfigDict) -> bool:
    """False where a folder holds what may be this run, from before its files were hashed."""
    try:
        stored = config_in(folder)
    except ConfigError:  # nothing there
        return True
    slots = {f"experiment.data.{slot}": stored.experiment.data[slot] for slot in SLOTS}
    return not unread(config, stored) or run_id(apply(config, slots)) != run_id(stored)


def adopt(folder: Path, config: ConfigDict) -> bool:
    """Write the content that a config knows into an older folder of the same run.

    False where its checkpoint was trained on other text. An older run also knows its texts by name.
    """
    if knows_content(folder, config):
        return True
    if checkpoint.steps(folder / "checkpoints"):
        full, data = with_data(config)
        batches = data.train_batches(model_of(full).data_transform())
        if not batches.knows(checkpoint.saved(folder / "checkpoints").data):
            return False
    formerly, values = ids_in(folder), read_values(folder)
    for slot in unread(config, config_in(folder)):
        values["experiment"]["data"][slot] = dict(config.experiment.data[slot])
    told = facts(config, folder)
    told["formerly"] = sorted((formerly | {*told["formerly"]}) - {run_id(config)})
    told["code_version"] = values.get("code_version", "unknown")
    write_atomically(folder / FILE, json.dumps({**values, **told}, sort_keys=True) + "\n")
    return True
