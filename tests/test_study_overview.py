"""`lcx status`: what is said of runs that wait, run, are finished, failed, or were killed."""

import json
import os
import subprocess
import sys

import pytest

from lcx.cli import main
from lcx.study.overview import overview
from lcx.study.status import locked, write_status


@pytest.fixture
def study(tmp_path):
    """A sweep of five: one in each state; the running one is held by the test."""
    members = []
    for seed, name in enumerate(("done", "busy", "dead", "broke", "later")):
        members.append(dict(run=name, position="rope", mixer="attention", seed=seed, label="small"))
        if name == "later":
            continue
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"experiment": {"train": {"steps": 50}}}')
        rows = [{"step": s, "loss": 3.0 - s / 100, "tokens": 100,
                 "time": {"tokens_per_second": None if s == 1 else 20.0}} for s in (1, 10)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text + '{"step": 20, "lo')  # torn
    (tmp_path / "sweep.json").write_text(json.dumps(dict(members=members)))
    write_status(tmp_path / "done", "finished", seconds=12.5)
    write_status(tmp_path / "busy", "running", doing="training")
    write_status(tmp_path / "dead", "running", doing="training")
    write_status(tmp_path / "broke", "failed", error="NonFinite: loss is nan")
    (tmp_path / "done/old/0").mkdir(parents=True)  # results of other code are no run
    (tmp_path / "done/old/0/config.json").write_text("{}")
    with locked(tmp_path / "busy"):
        yield tmp_path


def test_each_run_once_with_its_state_and_how_far_it_is(study):
    found = {record["run"]: record for record in overview(study)}
    assert {run: record["state"] for run, record in found.items()} == dict(
        done="finished", busy="running", dead="killed", broke="failed", later="waiting")
    busy = found["busy"]
    assert (busy["step"], busy["steps"], busy["loss"]) == (10, 50, 2.9)
    assert (busy["doing"], busy["tokens_per_second"], busy["seconds_left"]) == (
        "training", 20.0, 40 * 100 / 20.0)
    assert busy["arm"] == "rope, attention, small, seed 1"
    assert found["done"]["seconds_left"] is None and found["later"]["steps"] is None
    assert found["broke"]["error"] == "NonFinite: loss is nan"


def test_the_table_and_its_exit_code(study, capsys):
    assert main(["status", str(study)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "state", "step", "loss", "tokens/s", "left", "arm"]
    assert lines[2].split()[:6] == ["busy", "training", "10/50", "2.9000", "20", "3:20"]
    assert "broke: NonFinite: loss is nan" in lines
    assert lines[-1] == "1 failed, 1 finished, 1 killed, 1 running, 1 waiting"
    assert main(["status", str(study / "done"), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["state"] for record in told] == ["finished"]


def test_watching_ends_when_all_are_done(study, capsys, monkeypatch):
    rounds = []

    def later(seconds):
        rounds.append(seconds)
        if len(rounds) == 2:
            write_status(study / "busy", "finished")
            (study / "later").mkdir()
            write_status(study / "later", "finished")

    monkeypatch.setattr("time.sleep", later)
    assert main(["status", str(study), "--watch", "0.5"]) == 1  # one failed, one was killed
    assert rounds == [0.5, 0.5] and capsys.readouterr().out.count("run ") == 3


def test_it_starts_without_jax_and_says_where_nothing_is(study, tmp_path):
    code = ("import sys; from lcx.cli import main; main(['status', sys.argv[1]]);"
            "assert not {'jax', 'flax', 'numpy'} & set(sys.modules), 'slow import'")
    subprocess.run([sys.executable, "-c", code, str(study)], check=True, env=os.environ)
    assert main(["status", str(study / "later")]) == 2
