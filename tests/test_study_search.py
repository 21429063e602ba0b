"""Search: trials are runs, the least metric wins, a search that was cut off goes on."""

import json
import sys

import pytest

from lcx.cli import main
from lcx.errors import ConfigError
from lcx.study.search import search
from lcx.study.sweep import Worker

pytest.importorskip("optuna")

CONFIG = '''
from lcx.config import base_config

def get_config(arg=None):
    config = base_config()
    config.runtime.out = "{out}"
    return config

def space(trial):
    return {{"experiment.train.optimizer.learning_rate": trial.suggest_float("rate", 0.0, 1.0)}}
'''

# Answers as lcx.study.worker does; the loss is a parabola, and rates above 0.9 fail.
STAND_IN = '''
import json, sys
from pathlib import Path
from lcx.config import code_version, from_values, run_id
from lcx.study import records
from lcx.study.run_folder import folder_of
from lcx.study.status import write_status
for line in sys.stdin:
    request, answer = json.loads(line), {"state": "ok"}
    if "run" in request:
        config = from_values(request["run"])
        rate = config.experiment.train.optimizer["learning_rate"]
        answer = {"state": "failed", "error": "diverged"}
        if rate <= 0.9:
            folder, row = folder_of(config), dict.fromkeys(records.FIELDS)
            row |= {"metric": "bpb", "method": "same_target", "extra": {}}
            for length, factor in ((128, 1), (1024, 2)):
                records.append(folder / "rows.jsonl", [
                    {**row, "length": length, "value": factor * (rate - 0.3) ** 2}])
            write_status(folder, "finished", code_version=code_version()[0])
            answer = {"state": "finished"}
    print(json.dumps(answer), flush=True)
'''


@pytest.fixture
def path(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(STAND_IN)
    monkeypatch.setattr(Worker, "command", (sys.executable, str(tmp_path / "worker.py")))
    (tmp_path / "small.py").write_text(CONFIG.format(out=tmp_path / "runs"))
    return str(tmp_path / "small.py")


def test_trials_are_counted_over_calls_and_the_best_comes_first(path, tmp_path, capsys):
    assert len(search(path, trials=2, say=lambda text: None)) == 2
    code = main(["search", path, "--trials", "4", "--json"])
    trials = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(trials) == 4 and len({trial["run"] for trial in trials}) == 4
    rates = [t["overrides"]["experiment.train.optimizer.learning_rate"] for t in trials]
    for trial, rate in zip(trials, rates):
        good = None if rate > 0.9 else pytest.approx(2 * (rate - 0.3) ** 2)  # the longest
        assert trial["value"] == good
    values = [trial["value"] for trial in trials if trial["value"] is not None]
    assert values == sorted(values) and code == int(len(values) < 4)
    for trial in trials:
        folder = tmp_path / "runs" / "small" / trial["run"]
        assert folder.is_dir() == (trial["value"] is not None)


def test_a_trial_that_was_cut_off_is_taken_up_again(path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    asked = []
    with monkeypatch.context() as patch:
        patch.setattr("lcx.study.search.sweep", lambda members, **_: (
            asked.append(members[-1].config), kill()))
        with pytest.raises(Killed):
            search(path, trials=1, say=lambda text: None)
    trial, = search(path, trials=1, say=lambda text: None)
    assert trial.overrides["experiment.train.optimizer.learning_rate"] == \
        asked[0].experiment.train.optimizer["learning_rate"]


def test_mistakes_say_what_to_do(path, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no row has nll at 1024; there are: bpb at 1024"):
        search(path, trials=1, metric="nll", say=lambda text: None)
    (tmp_path / "plain.py").write_text(CONFIG.partition("def space")[0].format(out="x"))
    with pytest.raises(ConfigError, match=r"has no space\(trial\)"):
        search(str(tmp_path / "plain.py"), trials=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lcx\[search\]'"):
        search(path, trials=1)


def test_two_seeds_share_no_proposal(path):
    def rates(seed):
        found = search(path, [f"experiment.seed={seed}", f"runtime.name=seed-{seed}"], trials=4,
                       say=lambda text: None)
        return {trial.overrides["experiment.train.optimizer.learning_rate"] for trial in found}

    assert len(rates(0)) == 4 and not rates(0) & rates(1)


def test_a_length_that_no_rung_has_is_found_before_the_first_trial(path, tmp_path):
    with pytest.raises(ConfigError, match="1000 is none of the ladder's: 32, 64, 96, 128"):
        search(path, trials=1, length=1000)
    assert not (tmp_path / "runs").exists()
