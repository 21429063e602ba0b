"""Which rows make an arm, and what length costs it: checkpoints, test-time schemes, pairing."""

import math

import numpy as np
import pytest

import lcx
from lcx.eval.statistics import t_interval
from lcx.study import records
from lcx.study.arms import Arm, arm_of
from lcx.study.caveats import warn
from lcx.study.distinct import distinguish, final
from lcx.study.figures import heatmap, tokens, tradeoff
from lcx.study.gaps import adjusted, rises, short_costs
from lcx.study.tables import by_length, ranked
from tests.test_study_report import make, study

BYTES = np.full(12, 64)


def rung(position, seed, length, nats, **fields):
    """A bpb row with the sums per document that pairing needs."""
    extra = {"nll_by_document": nats.tolist(), "bytes_by_document": BYTES.tolist(),
             **fields.pop("extra", {})}
    return make(position, "attention", seed, length, value=nats.sum() / math.log(2) / BYTES.sum(),
                extra=extra, **fields)


@pytest.fixture
def nats():
    """Losses per document that differ much between documents, and little between contexts."""
    draw = np.random.default_rng(0)
    hard = draw.uniform(60, 200, 12)
    return lambda rise: hard + BYTES * math.log(2) * (rise + 0.01 * draw.normal(size=12))


def test_the_rise_is_paired_by_document_against_the_last_rung_inside(nats):
    rows = [rung("rope", 0, 96, nats(0.0)), rung("rope", 0, 128, nats(0.4)),
            rung("rope", 0, 1024, nats(0.5))]
    (gap,) = rises(rows)
    assert (gap.context, gap.against) == (1024, 96)
    apart = [np.array(row["extra"]["nll_by_document"]) for row in rows]
    by_hand = (apart[2] - apart[0]) / math.log(2) / 64
    assert gap.estimate.value == pytest.approx(by_hand.mean())
    half = 2.2 * by_hand.std(ddof=1) / math.sqrt(12)  # Student's t with 11 degrees of freedom
    assert gap.estimate.high - gap.estimate.low == pytest.approx(2 * half, rel=0.4)


def test_over_seeds_the_rise_has_a_t_interval(nats):
    values = (0.1, 0.2, 0.4)
    rows = [row for seed, rise in enumerate(values)
            for row in (rung("rope", seed, 96, nats(0.0)), rung("rope", seed, 1024, nats(rise)))]
    (gap,) = rises(rows)
    expected = t_interval(gap.seeds)
    assert (gap.estimate.low, gap.estimate.high) == (expected.low, expected.high)
    # p by scipy's own test.
    stats = pytest.importorskip("scipy.stats")
    assert gap.estimate.p == pytest.approx(stats.ttest_1samp(gap.seeds, 0.0).pvalue)


def test_short_cost_is_paired_with_the_best_arm(nats):
    rows = [rung(p, 0, 96, nats(cost)) for p, cost in (("rope", 0.0), ("alibi", 0.1))]
    best, costs = short_costs(rows)
    assert best == Arm("attention", "rope") and costs[best].estimate.value == 0.0
    found = costs[Arm("attention", "alibi")].estimate
    assert found.value == pytest.approx(0.1, abs=0.02) and 0 < found.high - found.low < 0.05
    other = [rung("rope", 0, 96, nats(0.0)), rung("alibi", 7, 96, nats(0.1))]
    assert short_costs(other)[1][Arm("attention", "alibi")].estimate.low is None


def test_verdicts_are_corrected_over_the_table(nats):
    """An effect that stands alone at the 5% level is a tie among twenty arms without any."""
    rows = [rung("alone", 0, c, nats(0.0)) for c in (96, 1024)]
    rows[1]["extra"]["nll_by_document"] = list(
        np.array(rows[0]["extra"]["nll_by_document"]) + np.array([3.0, -0.8] * 6))
    assert adjusted(rises(rows)) == {Arm("attention", "alone"): "higher"}
    for n in range(20):
        rows += [rung(f"p{n}", 0, c, nats(0.0)) for c in (96, 1024)]
    assert adjusted(rises(rows))[Arm("attention", "alone")] == "tie"


def test_a_rung_without_a_value_ranks_last_and_says_why():
    rows = study(mixers=("attention",), positions=("rope", "alibi"))
    rows = [{**row, "value": None, "extra": {**row["extra"], "status": "oom"}}
            if (row["position"], row["length"], row["metric"]) == ("alibi", 1024, "bpb") else row
            for row in rows]
    assert [(gap.arm.position, gap.status) for gap in rises(rows)] == [("rope", "ok"),
                                                                      ("alibi", "oom")]
    assert ranked(rows)[1][1][2] == "oom"


def at_steps(rise):
    """A run tested at steps 100 and 200, with other values at each; `rise` by step."""
    return [make("rope", "attention", 0, c, checkpoint_step=step, train_tokens=step * 1000,
                 value=2.5 + (rise[step] if c == 1024 else 0.0))
            for step in (100, 200) for c in (96, 128, 1024)]


def test_only_the_last_checkpoint_is_compared():
    rows = at_steps({100: 1.0, 200: 0.25})
    assert {row["checkpoint_step"] for row in final(rows)} == {200}
    header, body = by_length(final(rows))
    assert body[0][header.index("1024")] == "2.750" and warn(rows) == []
    (plot,) = tokens.plots(rows)
    assert [(p.length, p.estimate.value) for p in tokens.trajectories(rows)[Arm(
        "attention", "rope")]] == [(100_000, 1.0), (200_000, 0.25)]
    assert tokens.plots(final(rows)) == []


def test_rows_of_ladders_during_training_are_read_for_the_report_alone(tmp_path):
    rows = at_steps({100: 1.0, 200: 0.25})
    early = [row for row in rows if row["checkpoint_step"] == 100]
    last = [row for row in rows if row["checkpoint_step"] == 200]
    folder = tmp_path / rows[0]["run"]
    records.append(folder / "during.jsonl", early + [{**row, "value": 9.0} for row in last])
    records.append(folder / "rows.jsonl", last)
    assert records.read(tmp_path) == last
    assert records.read(tmp_path, during=True) == early + last  # the ladder at the end counts
    assert lcx.rows(tmp_path)["checkpoint_step"].tolist() == [200] * 3


def test_a_test_time_scheme_is_an_arm_of_its_own():
    trained = make("rope", "attention", 0, 128)
    native = make("yarn(factor=8.0)", "attention", 0, 128, extra={"arm": "yarn"})
    override = {**trained, "position": "yarn(factor=8.0)", "config_hash": "other",
                "extra": {**trained["extra"], "arm": "yarn"}}
    named = [arm_of(row).label() for row in distinguish([trained, native, override])]
    assert named == ["rope, attention", "yarn x8, attention", "rope, attention, tested as yarn x8"]
    longer = {**trained, "config_hash": "third", "extra": {
        **trained["extra"], "arm": "longer", "override": {"experiment.eval.max_factor": 32}}}
    told = arm_of(distinguish([trained, longer])[1])
    assert told.label() == "rope, attention, tested with max_factor=32"
    named = {**override, "extra": {**override["extra"], "label": "over rope", "override": {
        "experiment.model.position": {"name": "yarn", "factor": 8.0}}, "initialised": ["w"]}}
    assert arm_of(distinguish([trained, named])[1]).label(mixers=False) == \
        "rope, tested as yarn x8"
    assert "no training has touched: rope, attention, tested as yarn x8." in " ".join(
        warn(distinguish([trained, named])))


def test_figures_that_compare_need_something_to_compare():
    one = study(mixers=("attention",))
    assert heatmap.plots(one) == [] and len(heatmap.plots(study())) == 1
    assert tradeoff.plots([row for row in one if row["position"] == "rope"]) == []


def test_a_model_that_breaks_at_once_is_named():
    rows = [make("sinusoidal", "attention", 0, c, value=value)
            for c, value in ((96, 3.0), (128, 4.0), (1024, 3.8))]
    rows.append(make("sinusoidal", "attention", 0, 1024, "bpb_gap", value=-0.2))
    assert "sinusoidal, attention" in warn(rows)[0] and "read the rise" in warn(rows)[0]
