"""The command line: exit codes, one-line errors, JSON, and help that is quick and teaches."""

import json
import subprocess
import sys

import pytest

from lcx.cli import COMMANDS, main, split_overrides
from lcx.errors import ConfigError
from lcx.study import records

FILE = '''
from lcx.config import base_config

def get_config(arg=None):
    config = base_config()
    config.runtime.out = "{out}"
    return config

def sweep(arg=None):
    for position in ("rope", "no_pe"):
        yield {{"experiment.model.position": position}}
'''


@pytest.fixture
def path(tmp_path):
    (tmp_path / "small.py").write_text(FILE.format(out=tmp_path / "runs"))
    return str(tmp_path / "small.py")


def test_help_is_quick_and_teaches():
    code = ("import sys; from lcx.cli import make_parser; text = make_parser().format_help();"
            "assert 'lcx sweep configs/quickstart.py' in text;"
            "assert not {'jax', 'flax', 'numpy', 'matplotlib'} & set(sys.modules), 'slow import'")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_has_an_example(module, capsys):
    name = module.__name__.rsplit(".", 1)[-1]
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"\n  lcx {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["train"], "name one config"),
    (["train", "nowhere.py"], "no config file nowhere.py"),
    (["train", "SMALL", "--config.experiment.model.widht=3"], "did you mean 'width'"),
    (["sweep", "SMALL", "--config.experiment.model.position=ropee"], "did you mean 'rope'"),
    (["sweep", "SMALL", "--config.experiment.train.steps=x"], "must be int"),
    (["train", "SMALL", "--config.experiment.train.steps"], "needs a value"),
    (["train", "SMALL", "--config.experiment.eval.max_factor=3"], "power of two"),
    (["train", "SMALL", "--config=SMALL"], "not 2"),
    (["sweep", "SMALL", "--jobs=0"], "1 or more"),
    (["data", "SMALL", "--config.experiment.data.corpus={'name': 'files', 'paths': 'nope'}"],
     "nope"),
    (["train", "SMALL", "--config.experiment.data.corpus={'name': 'files', 'paths': 'nope'}"],
     "nope"),
    (["eval", "nowhere"], "is not a run"),
    (["report", "nowhere"], "no rows.jsonl under nowhere"),
    (["matrix", "--mixer=atention"], "did you mean 'attention'"),
])
def test_mistakes_are_one_line_and_exit_2(path, tmp_path, capsys, words, message):
    words = [word.replace("SMALL", path) for word in words]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("lcx: error: ") and told.count("\n") == 1
    assert message in told
    assert not (tmp_path / "runs").exists()  # nothing half-written


@pytest.mark.parametrize("words", [["trian", "x.py"], ["train", "x.py", "--cofnig=y"],
                                   ["matrix", "--config.experiment.seed=1"], []])
def test_wrong_arguments_exit_2(words, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("lcx: error: ") and told.count("\n") == 1 and "--help" in told


def test_overrides_with_and_without_the_equals_sign():
    words = ["train", "--config.a.b=c=d", "x.py", "--config.e", "-1", "--json", "--config", "y.py"]
    assert split_overrides(words) == (["train", "x.py", "--json", "--config", "y.py"],
                                      ["a.b=c=d", "e=-1"])
    with pytest.raises(ConfigError, match="--config.a needs a value"):
        split_overrides(["--config.a", "--json"])


def test_a_sweep_is_listed_without_running(path, capsys):
    assert main(["sweep", path, "--list", "--json", "--config.experiment.seed=3"]) == 0
    members = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(m["position"], m["seed"], m["state"]) for m in members] == [
        ("rope", 3, "waiting"), ("no_pe", 3, "waiting")]
    assert main(["sweep", path, "--list"]) == 0
    assert "waiting    rope, attention, seed 0" in capsys.readouterr().out


def test_report_as_json_is_one_object_per_row(tmp_path, capsys):
    row = dict.fromkeys(records.FIELDS) | {"run": "a", "metric": "bpb", "length": 8, "extra": {}}
    records.append(tmp_path / "a" / "rows.jsonl", [row, {**row, "length": 16}])
    assert main(["report", str(tmp_path), "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        row, {**row, "length": 16}]


def test_matrix_and_positions_as_json(capsys):
    assert main(["matrix", "--json", "--position=rope"]) == 0
    cells = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"position", "mixer", "status", "forms", "code", "reason"} <= set(cells[0])
    assert {cell["position"] for cell in cells} == {"rope"}
    assert main(["positions", "--json"]) == 0
    schemes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"name", "lanes", "paper", "summary"} <= set(schemes[0])
    assert "rope" in {scheme["name"] for scheme in schemes}


def test_an_error_of_our_own_is_one_line_and_a_stranger_keeps_its_trace(monkeypatch, capsys):
    from lcx.cli import positions
    from lcx.train import Interrupted, NonFinite

    def fail(error):
        def run(arguments):
            raise error
        monkeypatch.setattr(positions, "run", run)
        return main(["positions"])

    assert fail(NonFinite("loss is nan")) == 1
    assert fail(Interrupted("saved")) == 75
    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.count("lcx: error: ") == 3
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
