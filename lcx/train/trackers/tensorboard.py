"""TensorBoard event files in the run's folder, without TensorFlow: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE, INSTALL = "tensorboardX", "lcx[track]"


class Tensorboard:
    """Scalars by step; steps after the one that a run goes on from are taken back."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], start: int):
        import tensorboardX

        self.writer = tensorboardX.SummaryWriter(str(Path(folder) / "tensorboard"),
                                                 purge_step=start + 1 if start else None)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
