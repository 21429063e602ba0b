"""One checkpoint under other schemes: which parameters change, what compiles, what rows say."""

import json
import logging

import jax
import numpy as np
import pytest

from lcx.cli import main
from lcx.config import apply, load, parse_short, run_id
from lcx.errors import ConfigError
from lcx.study import records
from lcx.study.evaluate import DURING
from lcx.study.preflight import check
from lcx.study.restore import open_run
from lcx.study.run import evaluate_member, run_member
from lcx.train import CheckpointMismatch
from tests.test_study_sweep import CONFIG

POSITION = "experiment.model.position"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on RoPE that was also tested under YaRN, and while it trained: its folder."""
    root = tmp_path_factory.mktemp("study")
    (root / "text").mkdir()
    for n in range(10):
        (root / "text" / f"{n}.txt").write_text(f"the number {n} is not the number {n + 1}. " * 8)
    file = root / "tiny.py"
    file.write_text(CONFIG.format(text=root / "text", out=root / "runs"))
    config = apply(load(str(file)), {
        "experiment.eval.overrides": [{POSITION: {"name": "yarn", "factor": 2}}],
        "experiment.eval.every": 2})
    run_member(config, root / "run")
    return root / "run"


def bpb(rows):
    return {(row["position"], row["length"]): row for row in rows
            if row["metric"] == "bpb" and row["method"] == "same_target"}


@pytest.mark.parametrize(("text", "expected"), [
    ("position=yarn,factor=8", (POSITION, {"name": "yarn", "factor": 8})),
    ("position=no_pe", (POSITION, {"name": "no_pe"})),
    ('position=["randomized", "alibi"]', (POSITION, ["randomized", "alibi"])),
    ("mixer=attention,num_heads=2", ("experiment.model.mixer",
                                     {"name": "attention", "num_heads": 2})),
    ("max_factor=32", ("experiment.eval.max_factor", 32)),
    ("mlp=none", ("experiment.model.mlp", None)),
])
def test_the_short_spelling(text, expected):
    assert parse_short(text) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("position", "KEY=VALUE"), ("positoin=rope", "did you mean 'position'"),
    ("position=yarn,8", "'8' in .* is no OPTION=VALUE"), ("steps=3", "unknown key 'steps'"),
])
def test_the_short_spelling_says_what_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_short(text)


@pytest.mark.parametrize(("overrides", "message"), [
    (["yarn"], "is a dict of overrides"), ([{}], "is a dict"),
    ([{"experiment.train.steps": 3}], "cannot set 'experiment.train.steps'"),
    ([{POSITION: "yran"}], "did you mean 'yarn'"),
    ([{POSITION: {"name": "yarn", "factro": 4}}], "did you mean 'factor'"),
    ([{"experiment.eval.max_factor": 3}], "power of two"),
])
def test_wrong_overrides_are_refused_before_training(trained, overrides, message):
    config = apply(load(str(trained / "config.json")), {"experiment.eval.overrides": overrides})
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_the_ladder_walks_during_training_and_under_each_override(trained):
    rows = records.read(trained)
    found = bpb(rows)
    assert {position for position, _ in found} == {"rope", "yarn(factor=2.0)"}
    own, other = found["rope", 32], found["yarn(factor=2.0)", 32]
    assert own["value"] != other["value"]
    assert other["extra"]["label"] == "over rope" and "label" not in own["extra"]
    assert other["extra"]["override"] == {POSITION: {"name": "yarn", "factor": 2.0}}
    assert "dropped" not in other["extra"] and other["run"] == own["run"]
    assert {row["checkpoint_step"] for row in rows} == {6}
    along = records.read(trained / DURING)
    seen = {row["checkpoint_step"]: row["train_tokens"] for row in along}
    logged = {row["step"]: row["train_tokens"] for row in map(
        json.loads, (trained / "metrics.jsonl").read_text().splitlines())}
    assert seen == {2: logged[2], 4: logged[4]}
    assert {row["position"] for row in along} == {"rope"}
    assert len({row["value"] for row in along if row["metric"] == "bpb_gap"
                and row["length"] == 32}) == 2


def test_other_numbers_of_a_scheme_compile_nothing_and_score_as_if_they_had(trained, caplog):
    ways = ["position=rope,base=500", "position=yarn,factor=8", "position=pi,factor=4",
            "position=ntk,factor=2", "position=yarn,factor=3"]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        rows = evaluate_member(trained, schemes=ways)
    compiled = [r.getMessage() for r in caplog.records
                if r.getMessage().startswith("Finished XLA compilation of jit(run)")]
    alone = {}
    for way in (ways[2], ways[4]):  # lent a program above; here with one of their own
        jax.clear_caches()
        alone |= bpb(evaluate_member(trained, schemes=[way]))
    together = bpb(rows)
    assert len({row["value"] for (_, length), row in together.items() if length == 32}) == 5
    assert len({position for position, _ in alone}) == 2
    for key, row in alone.items():
        assert together[key]["value"] == row["value"]
    # The windows of 16 tokens and below share a program; 20 and 36 have one each. YaRN has a
    # temperature, hence programs of its own.
    assert len(compiled) == 2 * 3, compiled


def test_a_scheme_of_another_form_is_another_program(trained):
    run = open_run(trained)
    base = load(str(trained / "config.json"))
    same = open_run(trained, apply(base, {POSITION: {"name": "rope", "base": 77.0}}),
                    like=[run.program()])
    other = open_run(trained, apply(base, {POSITION: "alibi"}), like=[run.program()])
    assert same.model is run.model and other.model is not run.model
    assert same.config.experiment.model.position["base"] == 77.0
    assert not np.array_equal(jax.tree.leaves(same.variables["numbers"])[0],
                              jax.tree.leaves(run.variables["numbers"])[0])


def test_dropped_and_untrained_leaves_have_names(trained, caplog, capsys):
    assert main(["eval", str(trained), "--override", "position=t5_bias",
                 "--override", "mlp=none", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    biased = [row for row in rows if row["position"].startswith("t5_bias")]
    bare = [row for row in rows if row not in biased]
    assert biased and bare
    for row in biased:
        assert "dropped" not in row["extra"]
        assert all("position" in leaf for leaf in row["extra"]["initialised"])
    for row in bare:
        assert row["extra"]["dropped"] and "initialised" not in row["extra"]
        assert all("mlp" in leaf for leaf in row["extra"]["dropped"])
        assert row["extra"]["label"] == "mlp=None"
    text = (trained / "log.txt").read_text()
    for leaf in (*biased[0]["extra"]["initialised"], *bare[0]["extra"]["dropped"]):
        assert leaf in text
    own = load(str(trained / "config.json"))
    hashes = {row["config_hash"] for row in rows}
    assert len(hashes) == 2 and run_id(own) not in hashes


def test_leaves_of_another_shape_are_refused(trained):
    with pytest.raises(CheckpointMismatch, match="params.embedding"):
        evaluate_member(trained, ["experiment.model.width=32"])
