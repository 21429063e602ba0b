"""The domain of every number of a config that is not an option of a component (`lcx.domains`)."""

from __future__ import annotations

from typing import Annotated, Literal

from lcx.domains import BelowOne, Count, NonNegative, Seed, Whole, whole

Ways = Annotated[int, whole(-1, but=(0,))]  # devices along an axis of the mesh; -1: the rest

DOMAINS = {
    "experiment.seed": Seed,
    "experiment.model.vocab_size": Count | None,
    "experiment.model.width": Count,
    "experiment.model.depth": Count,
    "experiment.model.predict_ahead": Whole,
    "experiment.model.ahead_weight": NonNegative,
    "experiment.data.train_length": Count,
    "experiment.data.batch_size": Count,
    "experiment.data.validation": BelowOne,
    "experiment.data.test": BelowOne,
    "experiment.data.epochs": Count | None,
    "experiment.train.steps": Count,
    "experiment.train.clip": NonNegative,
    "experiment.train.accumulate": Count,
    "experiment.eval.split": Literal["validation", "test", "train"],
    "experiment.eval.documents": Count | None,
    "experiment.eval.max_factor": Count,
    "experiment.eval.targets": Count,
    "experiment.eval.seed": Seed,
    "experiment.eval.resamples": Count,
    "experiment.eval.batch_tokens": Count,
    "experiment.eval.chunk": Count | None,
    "experiment.eval.every": Whole,
    "runtime.mesh.data": Ways,
    "runtime.mesh.fsdp": Ways,
    "runtime.mesh.tensor": Ways,
    "runtime.log_every": Count,
    "runtime.checkpoint_every": Count,
}
