"""Weights & Biases, offline unless it is said; `wandb sync RUN/wandb/offline-*` sends it later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

PACKAGE, INSTALL = "wandb", "lcx[wandb]"


class Wandb:
    """A W&B run of the run's own id, gone on with where lcx goes on."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], start: int,
                 project: str = "lcx", mode: Literal["offline", "online"] = "offline"):
        import wandb

        self.run = wandb.init(project=project, id=name, dir=str(folder), mode=mode,
                              config=dict(config), resume="allow", reinit="create_new",
                              settings=wandb.Settings(silent=True, console="off"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()
