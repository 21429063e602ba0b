"""Exact match on a task: how many answers a model gets right, at the train length and beyond."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes, sharding
from lcx.errors import ConfigError, Unimplemented
from lcx.eval.ladder import out_of_memory
from lcx.eval.rows import check_fairness, row
from lcx.eval.statistics import LEVEL, Estimate, bootstrap
from lcx.model.reach import Same, reach_of

log = logging.getLogger(__name__)
METHOD = "exact_match"
METRICS = ("accuracy", "sequence_accuracy", "answer_nll")


class Rows(Protocol):
    """inputs, targets int32 [N,T]; answers bool [N,T]: where a prediction counts."""

    inputs: np.ndarray
    targets: np.ndarray
    answers: np.ndarray


def lengths(train_length: int, max_factor: int) -> list[int]:
    """Row lengths of a task's ladder: L, 2L, 4L ... max_factor L."""
    if max_factor < 1 or max_factor & (max_factor - 1):
        raise ConfigError(f"max_factor={max_factor} must be a power of two: 1, 2, 4, 8 ...")
    return [train_length * 2**k for k in range(max_factor.bit_length())]


def exact_match(model: Any, variables: Any, rows: Callable[[int], Rows], *, train_length: int,
                max_factor: int, fairness: Mapping[str, Any], batch_tokens: int = 16_384,
                chunk: int | None = None, resamples: int = 10_000,
                extra: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a task's ladder, length by length: `rows(T)` gives what is asked at length T.

    accuracy: of answers, each the argmax of its logits under the true tokens before it;
    sequence_accuracy: of rows with every answer right; answer_nll: mean nats per answer. Intervals
    are over rows. A length that the model refuses or has no memory for gives a row with a status
    and no value. `extra` goes into each row.
    """
    check_fairness(fairness)
    for length in lengths(train_length, max_factor):
        asked = rows(length)
        told, status = None, {}
        try:
            right, nll = _answer(model, variables, asked, batch_tokens, chunk)
            if np.isfinite(nll[asked.answers]).all():
                told = _estimates(right, nll, asked.answers, resamples)
            else:
                status = dict(status="nan", reason="losses are not finite: a diverged model, or a "
                              "read past a table")
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            status = dict(status="oom", reason=str(error).partition("\n")[0] or "out of memory")
        except ConfigError as error:
            kind = "unimplemented" if isinstance(error, Unimplemented) else "refused"
            status = dict(status=kind, reason=str(error))
        if status:
            log.warning("length %d: %s, %s", length, status["status"], status["reason"])
        for metric, estimate in zip(METRICS, told or [None]):
            yield row(fairness, train_length=train_length, length=length, metric=metric,
                      method=METHOD, estimate=estimate, documents=len(asked.inputs),
                      tokens=int(asked.answers.sum()) if told else 0,
                      extra={"interval": "bootstrap-t over rows", "level": LEVEL,
                             "resamples": resamples, "chunk": chunk, **extra, **status})


def _estimates(right: np.ndarray, nll: np.ndarray, answers: np.ndarray,
               resamples: int) -> Sequence[Estimate]:
    count, hits = answers.sum(1), (right & answers).sum(1)
    above = np.stack([hits, hits == count, np.where(answers, nll, 0.0).sum(1)], axis=1)
    below = np.stack([count, np.ones_like(count), count], axis=1)
    return bootstrap(above, below, resamples=resamples)


def _answer(model, variables, asked: Rows, batch_tokens: int,
            chunk: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Whether each prediction is right, bool [N,T], and its loss in nats [N,T]."""
    count, length = asked.inputs.shape
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else sharding.batch_ways(mesh)
    batch = -(-max(1, min(batch_tokens // length, count)) // ways) * ways
    call = lambda v, tokens, seq: model.apply(v, tokens, seq, state=None)[0]
    reach_of(model).require(call, variables, length)
    run, found = _program(Same(model)), []
    for at in range(0, count, batch):
        pick = np.minimum(np.arange(at, at + batch), count - 1)  # the last batch repeats its last
        seq, state = lanes.sequence(1, length), None
        step = length if chunk is None else min(chunk, length)
        if step < length:
            state = model.init_state(batch, length)
        pieces = []
        for first in range(0, length, step):
            part = slice(first, first + step)
            out, state = run(variables, asked.inputs[pick, part], asked.targets[pick, part],
                             seq[part], state)
            pieces.append(jax.device_get(out))
        found.append([np.concatenate(piece, axis=1) for piece in zip(*pieces)])
    right, nll = (np.concatenate(parts)[:count] for parts in zip(*found))
    return right, nll


@functools.lru_cache(maxsize=16)
def _program(same: Same):
    """The jitted answering call of a model; jit keeps one executable per shape."""
    def run(variables, inputs, targets, seq, state):
        logits, state = same.model.apply(variables, inputs, seq, state=state)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return (logits.argmax(-1) == targets, jax.nn.logsumexp(logits, -1) - chosen), state

    return jax.jit(run, donate_argnames=("state",))
