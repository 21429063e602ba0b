"""Intervals cover what they promise, and every shortcut equals its plain loop."""

import numpy as np
import pytest

from lcx.eval.statistics import (
    Estimate,
    bootstrap,
    documents_needed,
    holm,
    power_line,
    t_interval,
    verdict,
)


def _normal(draw, n):
    """Documents of different size whose loss per byte is normal around 2."""
    size = draw.uniform(50, 150, n)
    return size * (2 + 0.3 * draw.standard_normal(n)), size, 2.0


def _skewed(draw, n):
    """Log-normal sizes and log-normal losses: what long documents look like."""
    size = np.exp(draw.normal(4, 0.5, n))
    return size * np.exp(draw.normal(0, 0.4, n)), size, np.exp(0.08)


@pytest.mark.parametrize("make", [_normal, _skewed])
def test_bootstrap_covers_its_level(make):
    draw, hits, repeats = np.random.default_rng(3), 0, 1000
    for _ in range(repeats):
        above, below, truth = make(draw, 40)
        found = bootstrap(above[:, None], below[:, None], resamples=600)[0]
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / repeats <= 0.97


def test_bootstrap_equals_a_loop_that_draws_documents():
    draw = np.random.default_rng(0)
    above, below, _ = _skewed(draw, 12)

    def ratio(a, b):
        value = a.sum() / b.sum()
        variance = sum((x - value * y) ** 2 for x, y in zip(a, b)) * len(a) / (len(a) - 1)
        return value, np.sqrt(variance) / b.sum()

    value, error = ratio(above, below)
    student = []
    for _ in range(4000):
        drawn = draw.integers(0, 12, 12)
        one, spread = ratio(above[drawn], below[drawn])
        student.append((one - value) / spread)
    found = bootstrap(above[:, None], below[:, None])[0]
    low, high = value - np.quantile(student, [0.975, 0.025]) * error
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))


def test_bootstrap_is_fixed_by_its_seed_and_shares_resamples():
    draw = np.random.default_rng(1)
    above, below = draw.normal(2, 1, (20, 2)), draw.uniform(1, 2, (20, 1))
    together = bootstrap(above, below, resamples=500)
    for other in (5, 6, 7):  # so that no resamples are left in a cache
        bootstrap(np.ones((other, 1)), np.ones((other, 1)), resamples=500)
    assert together == bootstrap(above, below, resamples=500)
    assert together[1].low == pytest.approx(bootstrap(above[:, 1:], below, resamples=500)[0].low)
    assert together != bootstrap(above, below, resamples=500, seed=1)


def test_pairing_is_many_times_tighter():
    draw = np.random.default_rng(2)
    size, own = np.full(64, 100.0), draw.normal(2, 0.5, 64)  # documents differ more than models
    a, b = size * own, size * (own + 0.02 + 0.01 * draw.standard_normal(64))
    paired, one, other = bootstrap(np.stack([b - a, a, b], 1), size[:, None])
    assert verdict(paired) == "higher" and paired.p < 0.01
    assert one.high > other.low  # unpaired, the two could be equal
    assert (one.high - one.low) > 10 * (paired.high - paired.low)


def test_degenerate_inputs():
    few = bootstrap(np.ones((3, 1)), np.ones((3, 1)))[0]
    assert (few.value, few.low, few.high) == (1.0, None, None) and verdict(few) == "unknown"
    same = bootstrap(np.zeros((9, 1)), np.ones((9, 1)))[0]
    assert same == Estimate(0.0, 0.0, 0.0, 1.0) and verdict(same) == "tie"
    with pytest.raises(ValueError, match="no tokens"):
        bootstrap(np.ones((9, 1)), np.zeros((9, 1)))
    with pytest.raises(ValueError, match="sums per document"):
        bootstrap(np.ones(9), np.ones(9))


def test_interval_and_p_value_agree():
    draw = np.random.default_rng(5)
    for shift in np.linspace(-0.6, 0.6, 25):
        found = bootstrap(draw.normal(shift, 1, (30, 1)), np.ones((30, 1)), resamples=2000)[0]
        assert (verdict(found) != "tie") == (found.p < 0.05) or abs(found.p - 0.05) < 2e-3


def test_t_interval_against_the_table():
    found = t_interval([1.0, 2.0, 4.0])
    half = 4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
    assert found.low == pytest.approx(7 / 3 - half) and found.high == pytest.approx(7 / 3 + half)
    assert t_interval([2.0]) == Estimate(2.0)
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_power_is_true_to_the_square_root_law():
    draw = np.random.default_rng(7)
    width = lambda n: bootstrap(draw.normal(0, 0.1, (n, 1)), np.ones((n, 1)), resamples=2000)[0]
    needed = documents_needed(width(50), 50)
    reached = width(needed)
    assert (reached.high - reached.low) / 2 == pytest.approx(0.01, rel=0.25)
    assert f"about {needed} documents" in power_line(Estimate(0, -0.1, 0.1), 0) or needed > 4
    assert "about 400 documents (here 100: +-0.0200" in power_line(Estimate(0, -0.02, 0.02), 100)
    assert "too few" in power_line(Estimate(0.0), 2)
