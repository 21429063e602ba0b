"""Where the run lies that another one starts from, and whether it is ready."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lcx.config.stored import config_in, ids_in, place_of
from lcx.errors import ConfigError
from lcx.train import checkpoint


def source_of(config: ConfigDict) -> Path | None:
    """The folder of `experiment.train.start_from`, or None where a run starts from nothing.

    Raises ConfigError where it is not there, is another run by now, or is not trained to its end.
    """
    wanted = config.experiment.train.start_from
    if wanted is None:
        return None
    folder = place_of(config)
    if folder is None:
        raise ConfigError(f"experiment.train.start_from: no run {wanted} lies in "
                          f"{Path(config.runtime.out).expanduser()}/*/; "
                          "give its folder instead, or runtime.start_folder")
    try:
        there = ids_in(folder)
    except ConfigError as error:
        raise ConfigError(f"experiment.train.start_from={wanted}: {error}") from None
    if wanted not in there:
        raise ConfigError(f"{folder} holds the run {' or '.join(sorted(there))} and not {wanted}, "
                          "which experiment.train.start_from asks for; set runtime.start_folder to "
                          "where that one lies")
    source = config_in(folder)
    steps = checkpoint.steps(folder / "checkpoints")
    if not steps or steps[-1] < source.experiment.train.steps:
        raise ConfigError(f"{folder} has trained {steps[-1] if steps else 0} of its "
                          f"{source.experiment.train.steps} steps; finish it first (the same `lcx "
                          "train` goes on with it)")
    return folder
