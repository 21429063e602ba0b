"""Training: optimizer, schedule, step, checkpoint and loop, one concept per file."""

from lcx.train.checkpoint import CheckpointError, CheckpointMismatch, Checkpoints, load_params
from lcx.train.health import NonFinite
from lcx.train.interrupt import EXIT_CODE, Interrupted
from lcx.train.loop import train
from lcx.train.manifest import batch_id, state_hash
from lcx.train.program import Program, build_program
from lcx.train.state import Constants, TrainState
from lcx.train.step import sequence_of

__all__ = [
    "EXIT_CODE", "CheckpointError", "CheckpointMismatch", "Checkpoints", "Constants",
    "Interrupted", "NonFinite", "Program", "TrainState", "batch_id", "build_program",
    "load_params", "sequence_of", "state_hash", "train",
]
