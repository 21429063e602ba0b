"""Synthetic tasks: what a row holds, that a stream resumes, and that a model learns one."""

import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from lcx import data, lanes, lookup
from lcx.cli import main
from lcx.config import apply, base_config, validate
from lcx.data.generated import TaskData
from lcx.errors import ConfigError, DataError
from lcx.eval.exact import exact_match
from lcx.model import build_model
from lcx.study import records
from lcx.study.preflight import check_reach, with_data

NAMES = lookup.names("lcx.tasks")
SMALL = {"mqar": dict(name="mqar", vocab_size=32, pairs=3), "copy": dict(name="copy", vocab_size=8)}


def source(task, **options) -> TaskData:
    task = SMALL[task] if isinstance(task, str) else task
    return data.load(dict(task=task, train_length=24, batch_size=4), **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_can_be_answered_from_what_stands_before(name):
    """The naive reader: token by token, as the task's definition says."""
    rows = source(name).test_rows(24, 16)
    assert rows.inputs.shape == rows.targets.shape == rows.answers.shape == (16, 24)
    for inputs, targets, answers in zip(rows.inputs, rows.targets, rows.answers):
        assert answers.any()
        for t in np.flatnonzero(answers):
            assert READERS[name](inputs[:t + 1].tolist(), 3) == targets[t]


def recall(seen, pairs):
    found = dict(zip(seen[0:2 * pairs:2], seen[1:2 * pairs:2]))
    return found[seen[-1]]


def copied(seen, _):
    text = seen[:seen.index(1)]
    return text[len(seen) - len(text) - 1]


READERS = {"mqar": recall, "copy": copied}


def test_mqar_is_the_protocol_of_the_paper():
    rows = source("mqar").test_rows(24, 500)
    keys, values = rows.inputs[:, 0:6:2], rows.inputs[:, 1:6:2]
    assert keys.min() == 1 and keys.max() == 15 and values.min() == 16 and values.max() == 31
    for part in (keys, values):  # without replacement
        assert all(len(set(row)) == 3 for row in part.tolist())
    assert (rows.answers.sum(1) == 3).all()  # every key once
    seen = rows.inputs[:, :, None] == keys[:, None]
    assert (seen.sum(1) == 2).all(), "filler repeats a key"
    where = np.nonzero(rows.answers)[1]
    assert (where >= 6).all() and (where % 2 == 0).all()
    # p(i) ~ 1/i over nine places without replacement: the first is asked with P = 0.664 +- 0.06.
    assert abs((where == 6).sum() / 500 - first_place(9, 3)) < 0.06


def first_place(places, draws):
    """P that place 1 is among `draws` without replacement at weights i^-0.99, by enumeration."""
    weights = np.arange(1, places + 1) ** -0.99

    def missed(left, times):
        if not times:
            return 1.0
        total = weights[left].sum()
        return sum(weights[i] / total * missed([j for j in left if j != i], times - 1)
                   for i in left if i != 0)
    return 1 - missed(list(range(places)), draws)


def test_mqar_places_are_uniform_at_power_one():
    rows = source(dict(SMALL["mqar"], power=1.0)).test_rows(24, 3000)
    share = np.bincount(np.nonzero(rows.answers)[1], minlength=24)[6::2] / 3000
    assert np.abs(share - 3 / 9).max() < 0.04


def test_copy_varies_in_training_only():
    task = source(dict(SMALL["copy"], shortest=3)).task
    draw = np.random.default_rng(0)
    sizes = task.rows(draw, 300, 24, training=True).answers.sum(1)
    assert set(sizes.tolist()) == set(range(3, 13))
    rows = task.rows(draw, 8, 25)
    assert (rows.answers.sum(1) == 12).all() and rows.inputs.shape == (8, 25)
    assert (rows.inputs[:, 12] == 1).all() and (rows.targets[:, 24] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_batches_resume_and_are_shared_out(name):
    batches = source(name, seed=3).train_batches()
    first = [next(batches) for _ in range(3)]
    assert set(first[0]) == {"inputs", "targets", "weights", "ids"}
    assert (first[0]["inputs"] != first[1]["inputs"]).any()
    state = json.loads(json.dumps(batches.get_state()))
    later = next(batches)
    again = source(name, seed=3).train_batches()
    again.set_state(state)
    halves = [source(name, seed=3, process_index=i, process_count=2).train_batches()
              for i in range(2)]
    for half in halves:
        half.set_state(state)
    whole, parts = next(again), [next(half) for half in halves]
    for key in later:
        np.testing.assert_array_equal(later[key], whole[key])
        np.testing.assert_array_equal(later[key], np.concatenate([p[key] for p in parts]))
    with pytest.raises(DataError, match="other data"):
        source(name, seed=4).train_batches().set_state(state)


def test_test_rows_are_not_training_rows():
    one = source("copy", seed=5)
    trained = next(one.train_batches())["inputs"]
    tested = one.test_rows(24, 4, seed=5).inputs
    assert (trained != tested).any(1).all()
    assert (one.test_rows(24, 4, seed=5).inputs == tested).all()
    assert (one.test_rows(24, 4, seed=5, split="test").inputs != tested).any()


@pytest.mark.parametrize("change, told", [
    (dict(task=dict(name="mqar", pairs=7)), "fewer pairs"),
    (dict(task=dict(name="mqar", vocab_size=8, pairs=4)), "number of keys"),
    (dict(task=dict(name="mqar", pairs=2, power=0.0)), "above 0"),
    (dict(task=dict(name="copy", shortest=13)), "strings of up to 12"),
    (dict(task=dict(name="mqra")), "did you mean 'mqar'"),
    (dict(corpus="files"), "data.corpus means nothing beside data.task"),
    (dict(epochs=3), "data.epochs means nothing"),
])
def test_what_is_impossible_is_said(change, told):
    with pytest.raises(ConfigError, match=told):
        data.load({**dict(task="mqar", train_length=24, batch_size=4), **change})


class Oracle:
    """Answers copies right until `reach` tokens of a row, and nothing behind it."""

    vocab_size = 8

    def __init__(self, reach=10**9, bad=0.0):
        self.reach, self.bad = reach, bad

    def apply(self, variables, inputs, seq, state=None):
        import jax.numpy as jnp

        half = inputs.shape[1] // 2
        answer = jnp.roll(inputs, half, axis=1)  # what stood half a row before
        answer = jnp.where(seq.index < self.reach, answer, (answer + 1) % 8)
        return 9.0 * jax.nn.one_hot(answer, 8) + self.bad, state


def copy_rows(length):
    return source("copy").test_rows(length, 6)


FAIR = dict(parameters=1, flops_per_token=1, state_size=1, train_tokens=1, learning_rate=1.0,
            learning_rate_tuned=False, code_version="x", dirty=False, config_hash="y")


def told(model, **options):
    found = exact_match(model, {}, copy_rows, train_length=24, max_factor=2, fairness=FAIR,
                        extra=dict(chance=1 / 6), batch_tokens=96, **options)
    return {(row["metric"], row["length"]): row for row in found}


def test_accuracy_counts_answers_and_whole_rows():
    rows = told(Oracle())
    # The input at the separator is not in the string: its answer stands half a row before, too.
    assert rows["accuracy", 24]["value"] == rows["sequence_accuracy", 48]["value"] == 1.0
    assert rows["accuracy", 24]["tokens"] == 6 * 12 and rows["accuracy", 48]["documents"] == 6
    rows = told(Oracle(reach=18))
    assert rows["accuracy", 24]["value"] == pytest.approx(6 / 12)
    assert rows["sequence_accuracy", 24]["value"] == rows["accuracy", 48]["value"] == 0.0
    # exp(9) against seven others: the nats of a right and of a wrong answer.
    right, wrong = np.log1p(7 * np.exp(-9)), np.log1p(7 * np.exp(-9)) + 9
    assert rows["answer_nll", 24]["value"] == pytest.approx((right + wrong) / 2, rel=1e-4)


def test_a_length_without_a_value_says_why():
    rows = told(Oracle(bad=np.nan))
    assert rows["accuracy", 24]["value"] is None
    assert rows["accuracy", 48]["extra"]["status"] == "nan"


@pytest.mark.parametrize(("model", "message"), [
    (dict(position=dict(name="learned", rows=30)), "vectors for ids 0..29, not for 47"),
    (dict(position=dict(name="floater", rows=30, substeps=1)), "vectors for ids 0..29, not for 47"),
    (dict(mixer=dict(name="linformer", num_heads=1, rank=4, max_length=30)), "first 30 tokens"),
    (dict(mixer=dict(name="log_linear_mamba2", head_dim=8, state_dim=4, levels=6)),
     "first 32 tokens"),
    (dict(mixer=dict(name="log_linear_mamba2", head_dim=8, state_dim=4, levels=6),
          position="t5_bias"), "first 32 tokens"),  # over pairs of tokens
], ids=str)
def test_a_table_that_ends_is_refused_before_the_model_runs(model, message):
    """By the ladder at twice the train length of 24, and by training at 48."""
    options = dict(vocab_size=8, width=8, depth=1, position="no_pe", mlp=None,
                   mixer=dict(name="attention", num_heads=1))
    built = build_model({**options, **model}, train_length=24)
    shapes = nn.unbox(jax.eval_shape(built.init, jax.random.key(0), np.zeros((1, 24), np.int32),
                                     lanes.sequence(1, 24)))
    found = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    rows = list(exact_match(built, found, copy_rows, train_length=24, max_factor=2, fairness=FAIR,
                            resamples=50, extra={}))
    assert {row["length"]: row["extra"].get("status", "ok") for row in rows} == {
        24: "ok", 48: "refused"}
    assert message in rows[-1]["extra"]["reason"]
    config = apply(base_config(), {
        "experiment.data.task": dict(name="copy", vocab_size=8), "experiment.data.train_length": 48,
        **{f"experiment.model.{key}": value for key, value in {**options, **model}.items()}})
    _, data = with_data(config)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_reach(data, apply(config, {"experiment.eval.max_factor": 1}))


def small(tmp_path, task, **more):
    return validate(apply(base_config(), {
        "experiment.data.task": SMALL[task], "experiment.data.train_length": 24,
        "experiment.data.batch_size": 8, "experiment.model.width": 16,
        "experiment.model.depth": 1, "experiment.model.mlp": None,
        "experiment.model.mixer": dict(name="attention", num_heads=1),
        "experiment.train.steps": 4, "experiment.eval.max_factor": 2,
        "experiment.eval.targets": 8, "experiment.eval.resamples": 100,
        "runtime.out": str(tmp_path), "runtime.name": "t", "runtime.compile_cache": "", **more}))


def test_a_run_trains_tests_and_reports(tmp_path, capsys):
    """From the command line, as a user would; chunks through the state change no answer."""
    from lcx.config import resolve

    file = tmp_path / "c.json"
    file.write_text(json.dumps(resolve(small(tmp_path / "runs", "mqar"))))
    assert main(["train", str(file)]) == 0
    out = capsys.readouterr().out
    assert "Accuracy per answer" in out and "Rows with every answer right" in out
    assert "bpb" not in out and "24*" in out and "0.333" in out  # train length, chance
    rows = records.read(tmp_path / "runs")
    assert {(r["metric"], r["length"]) for r in rows} == {
        (m, n) for m in ("accuracy", "sequence_accuracy", "answer_nll") for n in (24, 48)}
    assert rows[0]["extra"]["task"]["task"] == "mqar" and rows[0]["extra"]["chance"] == 1 / 3
    folder = next(p.parent for p in (tmp_path / "runs").rglob("rows.jsonl"))
    assert main(["eval", str(folder), "--config.experiment.eval.chunk=12"]) == 0
    values = lambda chunk: [r["value"] for r in records.read(tmp_path / "runs")
                            if r["extra"]["chunk"] == chunk]
    assert np.allclose(values(12), values(None), atol=1e-5) and len(values(12)) == 6
    assert main(["report", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "runs" / "report" / "report.html").read_text()
    assert "Accuracy per answer, by length of row" in page and "Bits per byte" not in page
    assert main(["data", str(file)]) == 0
    assert "new rows of 24 tokens" in capsys.readouterr().out


@pytest.mark.full
def test_attention_solves_the_shipped_mqar(tmp_path):
    """Two minutes on two cores; the other mixers are for a GPU."""
    from pathlib import Path

    config = Path(__file__).parents[1] / "configs" / "tasks.py"
    assert main(["train", f"{config}:mqar,attention", f"--config.runtime.out={tmp_path}",
                 "--config.experiment.train.steps=1000"]) == 0
    best = [r["value"] for r in records.read(tmp_path)
            if r["metric"] == "accuracy" and r["length"] == r["train_length"]]
    assert best[0] > 0.99
