"""The training loop: resume, step, look at the metrics one step late, save, stop when asked."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from lcx import sharding
from lcx.errors import DataError
from lcx.train import health, trackers
from lcx.train.checkpoint import Checkpoints
from lcx.train.interrupt import Interrupt, Interrupted
from lcx.train.lock import lock
from lcx.train.manifest import batch_id
from lcx.train.metrics import MetricsFile
from lcx.train.program import Program, build_program
from lcx.train.progress import Progress
from lcx.train.start import Start
from lcx.train.state import Constants, TrainState

log = logging.getLogger(__name__)


class DataIterator(Protocol):
    """Batches (numpy dicts of this process's rows), and a JSON-able state to go on from."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Pending:
    """A step that the device may still be working on."""

    step: int
    metrics: Mapping[str, jax.Array]
    batch: str
    documents: list[int]


def train(config: Any, data: DataIterator, run_dir: str | os.PathLike, *,
          model: nn.Module | None = None, code_version: str = "unknown",
          measure: Callable[[TrainState, Constants, int, int], None] | None = None,
          start: Callable[[Program], Start] | None = None) -> TrainState:
    """Train to `config.experiment.train.steps` in `run_dir`, from its newest checkpoint if any.

    `measure` is called with (state, constants, step, tokens seen) every experiment.eval.every
    steps, the last one excepted. `start` gives the first state where there is no checkpoint
    (`lcx.train.start`); tokens and code versions count on from its own. Writes metrics.jsonl and
    checkpoints/, each of which says which code versions trained it. Raises Interrupted (exit code
    75) after SIGTERM, having saved; NonFinite on NaN or inf; CheckpointError, CheckpointMismatch,
    Locked, ConfigError and DataError as they say. Running it again goes on, and ends in the same
    bits.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    steps, runtime = config.experiment.train.steps, config.runtime
    mesh = sharding.make_mesh(**runtime.mesh)
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        first = jax.process_index() == 0
        stack.enter_context(lock(run_dir) if first else nullcontext())
        stack.enter_context(jax.set_mesh(mesh))
        program = build_program(config, model or _model(config), mesh)
        checkpoints = stack.enter_context(closing(Checkpoints(run_dir / "checkpoints")))
        checkpoints.check_space(program.abstract)

        found = checkpoints.restore(program.abstract)
        if found is None:
            first_state = start(program) if start else Start(program.init(), 0, ())
            state, begin, tokens = first_state.state, 0, first_state.tokens
            code = tuple(dict.fromkeys((*first_state.code, code_version)))
        else:
            state, begin, tokens = found[0], found[1].step, found[1].tokens
            code = tuple(dict.fromkeys((*found[1].code, code_version)))
            data.set_state(found[1].data)
            log.info("going on from step %d of %s", begin, run_dir)
        if begin >= steps:
            return state
        constants = program.constants()
        file = stack.enter_context(closing(MetricsFile(run_dir / "metrics.jsonl", begin))) \
            if first else None
        followers = trackers.make(
            runtime.trackers, folder=run_dir, name=run_dir.name, start=begin,
            config=config.to_dict()) if first and "trackers" in runtime else []
        for follower in followers:
            stack.callback(follower.close)
        progress = stack.enter_context(closing(Progress(steps, begin))) if first else None

        def report(done: Pending) -> None:
            """Wait for a step's scalars, check them, and log them."""
            nonlocal tokens
            row = {"step": done.step, **{k: float(v) for k, v in
                                         jax.device_get(done.metrics).items()}}
            scored = row["tokens"] = int(row["tokens"])
            row |= {"train_tokens": tokens + scored, "batch": done.batch}
            health.check(row, config.experiment.seed, done.documents, run_dir)
            tokens += scored
            if first:
                rate = progress.update(done.step, row["loss"], scored)
                if done.step % runtime.log_every == 0 or done.step in (1, steps):
                    file.append({**row, "time": {"tokens_per_second": rate}})
                    scalars = {**row, "tokens_per_second": rate}
                    for follower in followers:
                        follower.log(done.step, {name: value for name, value in scalars.items()
                                                 if isinstance(value, float)})

        pending, every = None, config.experiment.eval.every if measure else 0
        for step in range(begin + 1, steps + 1):
            try:
                batch = next(data)
            except StopIteration:
                raise DataError(f"the data ended after {step - 1} of {steps} batches; make it "
                                "repeat, or lower experiment.train.steps") from None
            state, metrics = program.step(state, constants, program.place(batch))
            before, pending = pending, Pending(step, metrics, batch_id(batch), _documents(batch))
            if before is not None:  # the device is at work on this step meanwhile
                report(before)
            due = every and step % every == 0 and step < steps
            save = step == steps or step % runtime.checkpoint_every == 0 or interrupt.asked
            if due or save:
                report(pending)  # nothing is saved or measured that was not looked at
                pending = None
            if due:
                measure(state, constants, step, tokens)
            if save:
                checkpoints.save(step, state, data.get_state(), tokens, code)
            if interrupt.asked:  # even after the last step: what follows is not for this process
                checkpoints.finish(step)
                raise Interrupted(f"stopped on request after step {step} of {steps}, saved; "
                                  "run the same command again to go on")
        checkpoints.finish(steps)
        return state


def _model(config: Any) -> nn.Module:
    from lcx.model import build_model  # late: a stand-in model needs none of it

    return build_model(config.experiment.model, config.experiment.data.train_length)


def _documents(batch: Mapping[str, np.ndarray]) -> list[int]:
    return np.unique(batch["document"]).tolist() if "document" in batch else []
