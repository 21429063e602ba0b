"""Score a trained run on one's own texts: bits per byte of the same tokens by context."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcx import sharding
from lcx.data import EvaluationDocument
from lcx.domains import Count, Seed, checked, fit
from lcx.errors import ConfigError, DataError
from lcx.eval.ladder import out_of_memory
from lcx.eval.lengths import contexts
from lcx.eval.scorer import stream
from lcx.eval.statistics import bootstrap
from lcx.eval.tally import Sums, exp
from lcx.eval.targets import Targets, choose
from lcx.ops.attention import api as attention
from lcx.study.restore import Run

COLUMNS = ("context", "bpb", "low", "high", "perplexity", "gap", "gap_low", "gap_high",
           "documents", "tokens", "status")


@checked
def score(run: Run, documents: Any, lengths: Iterable[int] | None = None, *, targets: Count = 256,
          block: Count | None = None, seed: Seed = 0, batch_tokens: Count = 16_384,
          chunk: Count | None = None, resamples: Count = 10_000) -> Any:
    """bpb and perplexity (per token) of the same target tokens by context, as a pandas frame.

    documents: a text (str), a file (Path), a list of these, or a dict of names to these.
    lengths: contexts in tokens; by default those of the run's own ladder, as far as the texts
    reach. `targets` blocks of `block` tokens (a quarter of the train length) are
    scored, each with its context from the same text. gap: bpb minus bpb at the train length,
    paired. Intervals are 95% over documents, absent below four. status says why a cell is empty.

    Raises DataError on texts that are too short or not UTF-8, ConfigError without pandas.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigError("lcx.score gives a frame and needs pandas: pip install lcx[report]"
                          ) from None
    length = run.config.experiment.data.train_length
    block = block or max(1, length // 4)
    texts = _documents(documents, run.tokenizer)
    asked = None if lengths is None else [fit(c, Count, "lengths") for c in lengths]
    ladder = contexts(length, run.config.experiment.eval.max_factor)
    wanted = _reachable(asked, ladder, texts, block)
    chosen = choose(texts, block=block, reach=wanted[-1], count=targets, seed=seed)
    mesh = sharding.make_mesh(**run.config.runtime.mesh)
    with jax.set_mesh(mesh), attention.backend(run.config.runtime.backend):
        measured = {c: _measure(run, texts, chosen, c, length, batch_tokens, chunk,
                                sharding.batch_ways(mesh)) for c in wanted}
    scored = np.unique(chosen.document)
    sums = {c: found.of(scored) for c, found in measured.items() if isinstance(found, Sums)}
    lines = [_line(c, sums.get(c), sums.get(length), resamples,
                   "ok" if c in sums else measured[c]) for c in wanted]
    return pandas.DataFrame(lines, columns=list(COLUMNS))


def _measure(run: Run, texts, chosen: Targets, context: int, length: int, batch_tokens: int,
             chunk: int | None, ways: int) -> Sums | str:
    """Sums per document over the blocks, or why there are none."""
    windows = chosen.windows(context, at_least=length)
    batch = max(1, min(batch_tokens // windows.length, len(windows)))
    sums, finite = Sums.zeros(len(texts)), True
    try:
        for table in stream(run.model, run.variables, texts, windows,
                            batch=-(-batch // ways) * ways, chunk=chunk):
            finite &= bool(np.isfinite(table.nll).all())
            inside = table.context >= context
            sums.add(table.document[inside], table.nll[inside], table.bytes[inside])
    except ConfigError as error:
        return f"refused: {error}"
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return "out of memory: pass a smaller batch_tokens, or chunk=..."
    if not finite:
        return "nan: some losses are not finite"
    return sums


def _line(context: int, sums: Sums | None, base: Sums | None, resamples: int,
          status: str) -> dict[str, Any]:
    line: dict[str, Any] = dict(context=context, status=status)
    if sums is None:
        return line
    above, below = [sums.bits(), sums.nll], [sums.bytes, sums.tokens]
    if base is not None:
        above, below = [*above, sums.bits() - base.bits()], [*below, sums.bytes]
    bpb, nll, *gap = bootstrap(np.stack(above, 1), np.stack(below, 1), resamples=resamples)
    line |= dict(bpb=bpb.value, low=bpb.low, high=bpb.high, perplexity=exp(nll).value,
                 documents=len(sums.nll), tokens=int(sums.tokens.sum()))
    if gap:
        line |= dict(gap=gap[0].value, gap_low=gap[0].low, gap_high=gap[0].high)
    return line


def _reachable(asked: Sequence[int] | None, ladder: Sequence[int],
               texts: Sequence[EvaluationDocument], block: int) -> list[int]:
    """The contexts to score, ascending; every one fits into a text with a block behind it."""
    longest = max(len(text.tokens) for text in texts)
    if asked is None:
        wanted, needed = [c for c in ladder if c + block <= longest], ladder[0] + block
    elif not asked:
        raise ConfigError(f"lengths={asked}: name one or more positive numbers of tokens")
    else:
        needed = max(asked) + block
        wanted = sorted({int(c) for c in asked}) if needed <= longest else []
    if not wanted:
        raise DataError(f"the longest text has {longest} tokens, and {needed} are needed (the "
                        f"context and a block of {block}); give a longer text, or smaller lengths "
                        "and block")
    return wanted


def _documents(given: Any, tokenizer: Any) -> list[EvaluationDocument]:
    if isinstance(given, (str, Path)):
        given = [given]
    named = given if isinstance(given, Mapping) else {
        str(one) if isinstance(one, Path) else f"text {n}": one
        for n, one in enumerate(given, start=1)}
    sizes, found = tokenizer.token_bytes(), []
    for n, (name, text) in enumerate(named.items()):
        raw = _read(name, text)
        ids = np.asarray(tokenizer.encode(raw), np.int32)
        if int(sizes[ids].sum()) != len(raw):
            raise DataError(f"the tokens of '{name}' do not cover its bytes: its tokenizer is not "
                            "lossless on this text")
        found.append(EvaluationDocument(str(name), n, "own", ids, sizes[ids]))
    if not found:
        raise DataError("there is nothing to score: give a text, a Path, or a list of them")
    return found


def _read(name: str, text: Any) -> bytes:
    if isinstance(text, Path):
        try:
            raw = text.expanduser().read_bytes()
            raw.decode("utf-8")
        except OSError as error:
            raise DataError(f"cannot read '{text}': {error.strerror}; name a text file (of a "
                            "folder: list(Path(...).glob('*.txt')))") from error
        except UnicodeDecodeError as error:
            raise DataError(f"'{text}' is not UTF-8 (byte {error.start}); convert it first: "
                            "iconv -t utf-8") from error
        return raw
    if not isinstance(text, str):
        raise DataError(f"'{name}' is a {type(text).__name__}; give a str (a text) or a Path (a "
                        "file)")
    if os.path.isfile(text):
        raise DataError(f"'{text}' names a file, but a str is taken for the text itself; write "
                        f"Path('{text}')")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"'{name}' holds a lone surrogate at character {error.start}, which UTF-8 "
                        "cannot spell; clean it first") from error
