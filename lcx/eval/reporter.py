"""From sums over the rungs of a ladder to its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lcx.eval.lengths import STABLE_WITHIN, Length, stable_length, useful_length
from lcx.eval.rows import row
from lcx.eval.statistics import LEVEL, Estimate, bootstrap, documents_needed
from lcx.eval.tally import Curve, Sums, exp
from lcx.eval.targets import Targets

SAME, SHUFFLED, CURVE, UNIGRAM = "same_target", "shuffled_prefix", "position_curve", "unigram"


class Reporter:
    """Keeps what later rungs are compared with, and writes the rows of each rung."""

    def __init__(self, targets: Targets, fairness: Mapping[str, Any], *, train_length: int,
                 asked: int, resamples: int, extra: Mapping[str, Any]):
        self.fairness, self.train_length, self.asked = fairness, train_length, asked
        self.resamples, self.block = resamples, targets.block
        self.documents = np.unique(targets.document)
        self.finished: dict[int, Sums] = {}
        self.gaps: dict[int, Estimate] = {}
        self.steps: dict[int, Estimate] = {}
        self.curve: tuple[int, Curve] | None = None
        self.extra = dict(block=targets.block, blocks=len(targets.document),
                          targets=targets.digest, interval="bootstrap-t over documents",
                          level=LEVEL, resamples=resamples, boundaries="inside one document",
                          ids="restart at 0 in each window", bos=False, **extra)

    def baseline(self, sums: Sums) -> dict[str, Any]:
        """The row of the unigram model on the same targets; its context length is 0."""
        sums = sums.of(self.documents)
        return self._row(0, "bpb", UNIGRAM, self._estimate([(sums.bits(), sums.bytes)])[0], sums)

    def rung(self, rung) -> Iterator[dict[str, Any]]:
        """Rows of a rung: bpb, perplexity, the gap against L and the step from half the context."""
        c = rung.context
        if rung.status != "ok":
            yield self._failed(rung, SAME)
            return
        sums = self.finished[c] = rung.sums.of(self.documents)
        if self.curve is None or c > self.curve[0]:
            self.curve = c, rung.curve
        pairs = [(c, c // 2), (2 * c, c)]
        pairs = [p for p in pairs if p[0] in self.finished and p[1] in self.finished]
        base = self.finished.get(self.train_length)
        ratios = [(sums.bits(), sums.bytes), (sums.nll, sums.tokens)]
        ratios += [_difference(*(self.finished[p] for p in pair)) for pair in pairs]
        ratios += [_difference(sums, base)] if base is not None else []
        bpb, nll, *rest = self._estimate(ratios)
        extra = dict(window=c + self.block, told_length=c + self.block, batch=rung.batch)
        kept = dict(nll_by_document=sums.nll.round(4).tolist(),
                    bytes_by_document=sums.bytes.astype(int).tolist())
        yield self._row(c, "bpb", SAME, bpb, sums, **extra, **kept)
        yield self._row(c, "perplexity", SAME, exp(nll), sums, **extra)
        for (longer, shorter), step in zip(pairs, rest):
            self.steps[longer] = step
            yield self._row(longer, "bpb_step", SAME, step, sums, against=shorter, p=step.p)
        if base is not None:
            self.gaps[c] = rest[-1]
            needed = documents_needed(rest[-1], len(self.documents))
            yield self._row(c, "bpb_gap", SAME, rest[-1], sums, **extra,
                            against=self.train_length, documents_needed=needed, p=rest[-1].p)

    def control(self, rung) -> Iterator[dict[str, Any]]:
        """Rows of a rung whose context beyond L is foreign: bpb, and the gap against the true L."""
        if rung.status != "ok":
            yield self._failed(rung, SHUFFLED)
            return
        sums, base = rung.sums.of(self.documents), self.finished.get(self.train_length)
        ratios = [(sums.bits(), sums.bytes)]
        ratios += [_difference(sums, base)] if base is not None else []
        extra = dict(window=rung.context + self.block, told_length=rung.context + self.block,
                     batch=rung.batch, true_context=self.train_length)
        for metric, estimate in zip(("bpb", "bpb_gap"), self._estimate(ratios)):
            yield self._row(rung.context, metric, SHUFFLED, estimate, sums, **extra)

    def summary(self) -> Iterator[dict[str, Any]]:
        """Rows after the last rung: stable and useful length, and the curve by position."""
        if not self.finished:
            return
        longest = max(self.finished)
        sums = self.finished[longest]
        stable = stable_length(self.gaps, train_length=self.train_length, asked=self.asked)
        useful = useful_length(self.steps, asked=self.asked)
        yield self._length("stable_length", stable, longest, sums, within=STABLE_WITHIN)
        yield self._length("useful_length", useful, longest, sums)
        context, curve = self.curve
        nll, tokens = curve.nll[self.documents], curve.tokens[self.documents]
        for k, estimate in enumerate(self._estimate(list(zip(nll.T, tokens.T)))):
            first, last = int(curve.edges[k]), int(curve.edges[k + 1]) - 1
            yield self._row(first, "nll", CURVE, estimate, None, tokens=tokens[:, k].sum(),
                            first=first, last=last, window=context + self.block)

    def _estimate(self, ratios: list[tuple[np.ndarray, np.ndarray]]) -> list[Estimate]:
        above, below = (np.stack(part, axis=1) for part in zip(*ratios))
        return bootstrap(above, below, resamples=self.resamples)

    def _length(self, metric: str, length: Length, longest: int, sums: Sums, **extra):
        value = None if length.value is None else Estimate(float(length.value))
        return self._row(longest, metric, SAME, value, sums, at_least=length.at_least, **extra)

    def _failed(self, rung, method: str) -> dict[str, Any]:
        return self._row(rung.context, "bpb", method, None, None, tokens=0, status=rung.status,
                         reason=rung.reason, batch=rung.batch, window=rung.context + self.block)

    def _row(self, length, metric, method, estimate, sums: Sums | None, *, tokens=None, **extra):
        tokens = sums.tokens.sum() if tokens is None else tokens
        return row(self.fairness, train_length=self.train_length, length=length, metric=metric,
                   method=method, estimate=estimate, documents=len(self.documents),
                   tokens=tokens, extra={**self.extra, **extra})


def _difference(longer: Sums, shorter: Sums) -> tuple[np.ndarray, np.ndarray]:
    """Paired by target token: both rungs scored the same ones, so their sums may be subtracted."""
    if not (np.array_equal(longer.tokens, shorter.tokens)
            and np.array_equal(longer.bytes, shorter.bytes)):
        raise AssertionError("two rungs scored different tokens: a bug in lcx.eval")
    return longer.bits() - shorter.bits(), longer.bytes
