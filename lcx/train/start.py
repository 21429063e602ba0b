"""The start of a run that takes its parameters from another: what was taken is always said."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from lcx.train import checkpoint
from lcx.train.manifest import flat
from lcx.train.overlay import load_onto
from lcx.train.program import Program
from lcx.train.state import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Start:
    """A state at step 0, with the tokens and the code versions that its parameters have seen."""

    state: TrainState
    tokens: int
    code: tuple[str, ...]


def start_from(folder: Path, program: Program) -> Start:
    """Parameters of a run's last checkpoint in a fresh state: optimizer, step and data are new.

    Only the parameters of positional schemes may be absent or new; the log names them. Raises
    CheckpointMismatch listing every other leaf that differs, CheckpointError on damage.
    """
    found = checkpoint.saved(folder / "checkpoints")
    params, left, new = load_onto(folder / "checkpoints", program.abstract.params, found.step,
                                  lambda: program.init().params)
    foreign = {leaf: words for leaves, words in (
        (left, "only the checkpoint has it"), (new, "only the model has it"))
        for leaf in leaves if not of_a_scheme(leaf)}
    if foreign:
        lines = "\n".join(f"  {leaf}: {words}" for leaf, words in sorted(foreign.items()))
        raise checkpoint.CheckpointMismatch(
            f"{folder} cannot be started from: beyond the positional schemes, {len(foreign)} "
            "leaves differ (make width, depth, mixer, mlp and the period of the pattern agree):\n"
            + lines)
    count = len(flat({"params": program.abstract.params})) - len(new)
    log.info("starting from step %d of %s: %d leaves of parameters taken", found.step, folder,
             count)
    for leaves, what in ((left, "left behind"), (new, "new, as untrained as they begin")):
        if leaves:
            log.warning("starting from %s: %s: %s", folder, what, ", ".join(leaves))
    return Start(program.begin(params), found.tokens, found.code)


def of_a_scheme(leaf: str) -> bool:
    """Whether a parameter's dotted path leads into a positional scheme."""
    return any(part == "position" or part.startswith(("position_", "embed_"))
               for part in leaf.split("."))
