"""Where the run lies that another one starts from, and whether it is ready."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from lcx.config import run_id
from lcx.config.start import config_in
from lcx.errors import ConfigError
from lcx.train import checkpoint


def source_of(config: ConfigDict) -> Path | None:
    """The folder of `experiment.train.start_from`, or None where a run starts from nothing.

    Raises ConfigError where it is not there, is another run by now, or is not trained to its end.
    """
    wanted = config.experiment.train.start_from
    if wanted is None:
        return None
    if config.runtime.start_folder:
        folder = Path(config.runtime.start_folder).expanduser()
    else:
        out = Path(config.runtime.out).expanduser()
        found = sorted(out.glob(f"*/{wanted}"))
        if not found:
            raise ConfigError(f"experiment.train.start_from: no run {wanted} lies in {out}/*/; "
                              "give its folder instead, or runtime.start_folder")
        folder = found[0]
    source = config_in(folder)
    if (there := run_id(source)) != wanted:
        raise ConfigError(f"{folder} holds the run {there} and not {wanted}, which "
                          "experiment.train.start_from asks for; set runtime.start_folder to where "
                          "that one lies")
    steps = checkpoint.steps(folder / "checkpoints")
    if not steps or steps[-1] < source.experiment.train.steps:
        raise ConfigError(f"{folder} has trained {steps[-1] if steps else 0} of its "
                          f"{source.experiment.train.steps} steps; finish it first (the same `lcx "
                          "train` goes on with it)")
    return folder
