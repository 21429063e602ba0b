"""The length ladder: the same target tokens, scored with more and more context."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lcx import sharding
from lcx.errors import ConfigError, Unimplemented
from lcx.eval.lengths import contexts
from lcx.eval.reporter import Reporter
from lcx.eval.rows import check_fairness
from lcx.eval.scorer import serves, stream, vocab_size
from lcx.eval.tally import Curve, Sums
from lcx.eval.targets import choose, foreign_prefixes
from lcx.eval.unigram import unigram_sums
from lcx.eval.windows import Document, Windows

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Rung:
    """What one context length gave: sums over the target blocks, or why there are none.

    status: ok, oom (out of memory), refused or unimplemented (the scheme or mixer ends here), nan.
    """

    context: int
    status: str = "ok"
    reason: str = ""
    batch: int = 0
    sums: Sums | None = None
    curve: Curve | None = None


def ladder(model: Any, variables: Any, documents: Sequence[Document], *, train_length: int,
           max_factor: int, fairness: Mapping[str, Any], targets: int = 256, seed: int = 0,
           batch_tokens: int = 16_384, unigram: np.ndarray | None = None,
           chunk: int | None = None, shuffled_prefix: bool = False,
           resamples: int = 10_000) -> Iterator[dict[str, Any]]:
    """The same-target curve of a model as rows, each rung's rows as soon as it is measured.

    `targets` blocks of train_length/4 tokens, the same at every rung, are scored with contexts of
    L/4, L/2, 3L/4, L, 2L ... max_factor x L tokens counted at the start of the block; L comes
    first, since every gap is against it. `seed` chooses the targets: compare models at equal seeds.
    batch_tokens bounds the tokens of one call; chunk sends windows through the model's state in
    pieces (see `scorer.score`); unigram holds counts [V] of training tokens for the baseline;
    shuffled_prefix adds the control in which all context beyond L is another document's.

    Input errors raise here, before the first rung: DataError where no document is long enough,
    ConfigError on impossible settings. A rung that runs out of memory or that the model refuses
    gives a row with a status and no value, and the others go on.
    """
    check_fairness(fairness)
    if batch_tokens < 1 or (chunk is not None and chunk < 1):
        raise ConfigError(f"batch_tokens={batch_tokens} and chunk={chunk} must be positive")
    lengths = contexts(train_length, max_factor)
    chosen = choose(documents, block=train_length // 4, reach=lengths[-1], count=targets, seed=seed)
    if len(chosen.document) < targets:
        log.warning("the documents hold %d of the %d target blocks asked for",
                    len(chosen.document), targets)
    if unigram is not None and len(unigram) != vocab_size(model):
        raise ConfigError(f"unigram has counts of {len(unigram)} ids, but the model's vocabulary "
                          f"has {vocab_size(model)}")
    if not shuffled_prefix:
        controls = {}
    else:
        controls = {c: foreign_prefixes(documents, chosen, c, train_length, seed=seed)
                    for c in lengths if c > train_length}
    report = Reporter(chosen, fairness, train_length=train_length, asked=lengths[-1],
                      resamples=resamples,
                      extra=dict(targets_asked=targets, evaluation_seed=seed, chunk=chunk))
    measure = lambda c, windows: _rung(model, variables, documents, windows, c, batch_tokens, chunk)

    def rows() -> Iterator[dict[str, Any]]:
        if unigram is not None:
            yield report.baseline(unigram_sums(documents, chosen, unigram))
        # One trace for all rungs; where a table ends before the last, each rung says so itself.
        serves(model, variables, lengths[-1] + train_length // 4)
        for context in sorted(lengths, key=lambda c: (c != train_length, c)):
            # The rungs inside the train length share its shape, hence one program.
            windows = chosen.windows(context, at_least=train_length)
            yield from report.rung(measure(context, windows))
            if context in controls:
                yield from report.control(measure(context, controls[context]))
        yield from report.summary()

    return rows()


def _rung(model, variables, documents, windows: Windows, context: int, batch_tokens: int,
          chunk: int | None) -> Rung:
    """Measure one context length; a smaller batch is tried before memory is said to be short."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else sharding.batch_ways(mesh)
    batch = max(1, min(batch_tokens // windows.length, len(windows)))
    while True:
        whole = -(-batch // ways) * ways  # a batch that the mesh divides
        try:
            return _measure(model, variables, documents, windows, context, whole, chunk)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or "out of memory"
            log.warning("context %d, batch %d: out of memory", context, whole)
            if batch == 1:
                return Rung(context, "oom", reason, whole)
            batch = max(1, batch // 2)
        except ConfigError as error:  # a Refusal, or a scheme that ends before this length
            missing = isinstance(error, Unimplemented)
            status = "unimplemented" if missing else "refused"
            log.warning("context %d is %s: %s", context, status, error)
            return Rung(context, status, str(error), whole)


def _measure(model, variables, documents, windows, context, batch, chunk) -> Rung:
    sums = Sums.zeros(len(documents))
    curve = Curve.zeros(len(documents), windows.length - 1)
    bad = 0
    for table in stream(model, variables, documents, windows, batch=batch, chunk=chunk):
        bad += int((~np.isfinite(table.nll)).sum())
        block = table.context >= context
        sums.add(table.document[block], table.nll[block], table.bytes[block])
        curve.add(table)
    if bad:
        reason = f"{bad} losses are not finite: a diverged model, or a read past a table"
        log.warning("context %d: %s", context, reason)
        return Rung(context, "nan", reason, batch)
    return Rung(context, batch=batch, sums=sums, curve=curve)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device or the host ran out of memory."""
    text = str(error)
    return (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text
            or "out of memory" in text.lower())
