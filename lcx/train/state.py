"""What a training step carries on, and the constants that stand beside it."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct


@struct.dataclass
class TrainState:
    """What a step changes and a checkpoint holds: update count, parameters, optimizer moments."""

    step: jax.Array
    params: Any
    opt_state: Any


@struct.dataclass
class Constants:
    """What a step reads and never changes; traced, so that members of a sweep share a program.

    variables: the collections beside params (the schemes' `numbers`); key: the run's random key,
    from which each step folds its own; learning_rate: the peak; steps: the length of the run.
    """

    variables: Any
    key: jax.Array
    learning_rate: jax.Array
    steps: jax.Array
