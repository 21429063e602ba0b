"""The one scorer: per-token NLL of given windows; every metric is a view of what it streams."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lcx import lanes
from lcx.errors import ConfigError, DataError
from lcx.eval.windows import Document, Windows, batches, check, cut
from lcx.model.reach import Same, reach_of


@dataclasses.dataclass(frozen=True)
class Scored:
    """A table of scored tokens, one entry each, all [N].

    document: index in the list; position: of the token in its document; context: tokens that the
    model saw before it; nll: nats, float32 or float64; bytes: UTF-8 bytes of the token; token: id.
    """

    document: np.ndarray
    position: np.ndarray
    context: np.ndarray
    nll: np.ndarray
    bytes: np.ndarray
    token: np.ndarray


def score(model: Any, variables: Any, inputs: np.ndarray, targets: np.ndarray, *,
          seq: lanes.Sequence | None = None, chunk: int | None = None) -> np.ndarray:
    """NLL in nats [B,T] of targets [B,T] given inputs [B,T], for every token that is given.

    Compiled once per shape and model, whatever the variables. With `chunk`, inputs go through the
    model's state in pieces of that many tokens (a last uneven piece is its own program), so that
    memory is bounded by the state. `seq` defaults to one document per row that starts at 0.

    Raises DataError on a token id outside the vocabulary, TableEnd where a table of positions ends
    before the last token, both before anything compiles; TypeError on a half-precision NLL.
    """
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    if inputs.ndim != 2 or inputs.shape != targets.shape:
        raise ValueError(f"inputs {inputs.shape} and targets {targets.shape} must both be [B,T]")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk={chunk}: take a positive number of tokens, or None for one call")
    for ids in (inputs, targets):
        _check_ids(ids, vocab_size(model))
    batch, length = inputs.shape
    if seq is None:
        require(model, variables, length)
        seq = lanes.sequence(1, length)
    run = _program(Same(model))
    if chunk is None or chunk >= length:
        nll, _ = run(variables, inputs, targets, seq, None)
        return _checked(nll, inputs.shape)
    state = model.init_state(batch, length)
    pieces = []
    for at in range(0, length, chunk):
        part = slice(at, min(at + chunk, length))
        nll, state = run(variables, inputs[:, part], targets[:, part], seq[part], state)
        pieces.append(_checked(nll, inputs[:, part].shape))
    return np.concatenate(pieces, axis=1)


def stream(model: Any, variables: Any, documents: Sequence[Document], windows: Windows, *,
           batch: int, chunk: int | None = None) -> Iterator[Scored]:
    """Tables of the scored tokens of `windows`, one per batch, all batches of one shape.

    Windows that hold different numbers of tokens are scored in different batches where the model
    reads that number, so that each is told its own. Raises DataError where a window does not fit
    its document (nothing is ever truncated), and TableEnd where a table of positions is shorter
    than a window.
    """
    check(documents, windows)
    require(model, variables, windows.length)
    apart = len(np.unique(windows.lengths())) > 1 and reads_length(model, variables, windows.length)
    for told, rows, real in batches(windows, batch, by_length=apart):
        seq = lanes.sequence(1, windows.length, told_length=told)
        arrays = cut(documents, windows, rows)
        nll = score(model, variables, arrays.inputs, arrays.targets, seq=seq, chunk=chunk)
        row, step = np.nonzero(arrays.mask[:real])
        yield Scored(windows.document[rows][row], arrays.position[row, step], step + 1,
                     nll[row, step], arrays.bytes[row, step], arrays.targets[row, step])


def require(model: Any, variables: Any, length: int) -> None:
    """Raise TableEnd where a table of positions ends before windows of `length` tokens do."""
    reach_of(model).require(functools.partial(_call, model), variables, length)


def serves(model: Any, variables: Any, length: int) -> bool:
    """Whether windows of `length` tokens, and shorter ones, lie within every table."""
    return reach_of(model).serves(functools.partial(_call, model), variables, length)


def _call(model, variables, tokens, seq):
    return model.apply(variables, tokens, tokens, seq, state=None, method="score")[0]


def reads_length(model: Any, variables: Any, length: int) -> bool:
    """Whether a model's scores may depend on the length that it is told: without one, what reads it
    fails to trace. (An error of another cause counts too, which costs batches and no numbers.)"""
    tokens = jax.ShapeDtypeStruct((1, length), np.int32)
    seq = lanes.sequence(1, length).replace(length=None)
    try:
        jax.eval_shape(lambda v, t: _call(model, v, t, seq), variables, tokens)
    except Exception:
        return True
    return False


def vocab_size(model: Any) -> int:
    """Number of token ids that the model knows."""
    return int(model.vocab_size)


def _check_ids(ids: np.ndarray, size: int) -> None:
    """A gather clamps on the device without a word, so ids are checked on the host."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"token ids must be integers, got {ids.dtype}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise DataError(f"token id {low if low < 0 else high} is outside the model's vocabulary of "
                        f"{size}; evaluate with the tokenizer that the model was trained with")


def _checked(nll: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    if nll.shape != shape:
        raise ValueError(f"the model scored {nll.shape} for tokens {shape}: something was cut off")
    if nll.dtype not in (np.float32, np.float64):
        raise TypeError(f"the model returned NLLs in {nll.dtype}; sums need float32 or float64")
    return np.asarray(nll)


@functools.lru_cache(maxsize=16)
def _program(same: Same):
    """The jitted scoring call of a model; jit keeps one executable per shape."""
    def run(variables, inputs, targets, seq, state):
        return same.model.apply(variables, inputs, targets, seq, state=state, method="score")

    return jax.jit(run, donate_argnames=("state",))
