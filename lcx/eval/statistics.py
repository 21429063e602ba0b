"""Intervals that hold: bootstrap over documents, t over seeds, Holm over a table."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST_DOCUMENTS = 4  # below this no bootstrap covers; the interval is left out


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its interval and the two-sided p-value of "the true value is 0".

    low, high and p are None where there are too few documents (or seeds) for an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def bootstrap(numerator: np.ndarray, denominator: np.ndarray, *, resamples: int = RESAMPLES,
              seed: int = 0, level: float = LEVEL) -> list[Estimate]:
    """Ratios of sums over documents, resampling whole documents (cluster bootstrap).

    numerator [D,N], denominator [D,N] or [D,1]: sums over the scored tokens of each of D documents,
    for N statistics that share their resamples. The n-th value is sum_d numerator / sum_d
    denominator. A numerator that is itself a difference per token makes it a *paired* comparison.

    The interval is studentised (bootstrap-t): each resample's error is divided by its own standard
    error before the quantiles are read. With 8 to 64 documents and skewed losses it covers 92-95%
    where the plain percentile interval covers 81-94%. Raises ValueError on unlike shapes.
    """
    numerator = np.asarray(numerator, np.float64)
    denominator = np.asarray(denominator, np.float64)
    if numerator.ndim != 2 or denominator.ndim != 2 or len(numerator) != len(denominator):
        raise ValueError("bootstrap needs sums per document [D,N] twice, got "
                         f"{numerator.shape} and {denominator.shape}")
    denominator = np.broadcast_to(denominator, numerator.shape)
    documents = len(numerator)
    total = denominator.sum(0)
    if (total <= 0).any():
        raise ValueError("a ratio over no tokens: every statistic needs a positive denominator")
    value = numerator.sum(0) / total
    if documents < FEWEST_DOCUMENTS:
        return [Estimate(float(v)) for v in value]
    residual = numerator - value * denominator
    error = np.sqrt(np.square(residual).sum(0)) / total  # n/(n-1) would cancel in every ratio
    shift, spread = _resample(residual, denominator, resamples, seed)
    # Spread 0 happens when a resample holds one document only, or when nothing varies at all.
    floor = 1e-9 * error
    with np.errstate(divide="ignore", invalid="ignore"):
        student = np.where(spread > floor, shift / spread, np.nan)
    return [_interval(v, e, z[np.isfinite(z)], level) for v, e, z in zip(value, error, student.T)]


def _interval(value: float, error: float, student: np.ndarray, level: float) -> Estimate:
    tail = (1.0 - level) / 2.0
    if error <= 1e-12 * max(1.0, abs(value)) or not len(student):  # no document differs
        return Estimate(float(value), float(value), float(value), 0.0 if value else 1.0)
    lower, upper = np.quantile(student, [tail, 1.0 - tail])
    observed = value / error
    beyond = min((student >= observed).sum(), (student <= observed).sum())
    p = min(1.0, 2.0 * (1 + beyond) / (1 + len(student)))
    return Estimate(float(value), float(value - upper * error), float(value - lower * error),
                    float(p))


def _resample(residual: np.ndarray, denominator: np.ndarray, resamples: int, seed: int):
    """Error and (linearised) standard error of every resample, [R,N] each, by matrix products."""
    documents, count = residual.shape
    columns = np.concatenate([residual, denominator, residual**2, residual * denominator,
                              denominator**2], axis=1)
    weights = _weights(documents, resamples, seed)
    shift, spread = np.empty((resamples, count)), np.empty((resamples, count))
    block = max(1, 4_000_000 // documents)  # the weights as float64 stay below 32 MB
    for at in range(0, resamples, block):
        sums = weights[at:at + block].astype(np.float64) @ columns
        part, total, rr, rd, dd = np.split(sums, 5, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            off = part / total
            squares = np.maximum(rr - 2 * off * rd + off**2 * dd, 0.0)
            spread[at:at + block] = np.sqrt(squares) / total
        shift[at:at + block] = off
    return shift, spread


@functools.lru_cache(maxsize=2)
def _weights(documents: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample drew each document, [R,D]: multinomial counts."""
    draw = np.random.default_rng(seed)
    weights = draw.multinomial(documents, np.full(documents, 1.0 / documents), size=resamples)
    return weights.astype(np.uint16 if documents < 2**16 else np.uint32)


def t_interval(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Mean over seeds with Student's t interval; a bootstrap over 3 seeds would cover 87% only.

    No interval from one value. Raises ValueError on an empty list.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("an interval over seeds needs at least one value")
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean)
    half = float(stdtrit(values.size - 1, (1.0 + level) / 2.0)
                 * values.std(ddof=1) / math.sqrt(values.size))
    return Estimate(mean, mean - half, mean + half)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of a table, in the order given (family-wise error)."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def verdict(estimate: Estimate) -> str:
    """What a difference of losses says: "tie" where the interval holds 0, else "lower"/"higher".

    "unknown" where there is no interval: too few documents or seeds to tell.
    """
    if estimate.low is None or estimate.high is None:
        return "unknown"
    if estimate.low <= 0.0 <= estimate.high:
        return "tie"
    return "lower" if estimate.high < 0.0 else "higher"


def documents_needed(estimate: Estimate, documents: int, *, target: float = 0.01) -> int | None:
    """Documents for a 95% half-width of `target` (bpb): half-widths shrink with 1/sqrt(documents).

    None without an interval.
    """
    if estimate.low is None or estimate.high is None:
        return None
    half = (estimate.high - estimate.low) / 2.0
    return max(FEWEST_DOCUMENTS, math.ceil(documents * (half / target) ** 2))


def power_line(estimate: Estimate, documents: int, *, target: float = 0.01) -> str:
    """A sentence: how many documents a difference of `target` bpb needs, beside what was used."""
    needed = documents_needed(estimate, documents, target=target)
    if needed is None:
        return (f"{documents} documents are too few for an interval; "
                f"take at least {FEWEST_DOCUMENTS}")
    half = (estimate.high - estimate.low) / 2.0
    return (f"to tell {target:g} bpb apart takes about {needed} documents "
            f"(here {documents}: +-{half:.4f} bpb)")
