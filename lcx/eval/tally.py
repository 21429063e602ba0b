"""Views of the scored table: sums per document, over the target blocks and by position."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lcx.eval.scorer import Scored
from lcx.eval.statistics import Estimate

LN2 = math.log(2.0)


@dataclasses.dataclass
class Sums:
    """Sums over the scored tokens of each document, float64 [D]: nats, UTF-8 bytes, tokens."""

    nll: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    @classmethod
    def zeros(cls, documents: int) -> Sums:
        return cls(*(np.zeros(documents) for _ in range(3)))

    def add(self, document: np.ndarray, nll: np.ndarray, spans: np.ndarray) -> None:
        """Count tokens [N] of documents [N] in, in float64 and token by token."""
        total = lambda w: np.bincount(document, w, minlength=len(self.nll))
        self.nll += total(nll.astype(np.float64))
        self.bytes += total(spans)
        self.tokens += total(None)

    def bits(self) -> np.ndarray:
        """Bits of each document [D]; over `bytes` they are bits per byte."""
        return self.nll / LN2

    def of(self, documents: np.ndarray) -> Sums:
        """The sums of some documents."""
        return Sums(self.nll[documents], self.bytes[documents], self.tokens[documents])


@dataclasses.dataclass
class Curve:
    """NLL by position: sums [D, buckets] of tokens whose context is in [edges[k], edges[k+1])."""

    edges: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray

    @classmethod
    def zeros(cls, documents: int, longest: int) -> Curve:
        """Two buckets per doubling, up to contexts of `longest` tokens."""
        steps = np.arange(2 * math.ceil(math.log2(max(longest, 2))) + 1)
        edges = np.unique(np.rint(2.0 ** (steps / 2)).astype(np.int64))
        edges = np.append(edges[edges <= longest], longest + 1)
        shape = (documents, len(edges) - 1)
        return cls(edges, np.zeros(shape), np.zeros(shape))

    def add(self, table: Scored) -> None:
        """Count a table of scored tokens in."""
        bucket = np.searchsorted(self.edges, table.context, side="right") - 1
        cell = table.document * self.nll.shape[1] + bucket
        total = lambda w: np.bincount(cell, w, self.nll.size).reshape(self.nll.shape)
        self.nll += total(table.nll.astype(np.float64))
        self.tokens += total(None)


def exp(nll: Estimate) -> Estimate:
    """Perplexity of a mean NLL; exp keeps the order, so the limits carry over."""
    power = lambda x: None if x is None else math.exp(x) if x < 700 else math.inf
    return Estimate(power(nll.value), power(nll.low), power(nll.high))
