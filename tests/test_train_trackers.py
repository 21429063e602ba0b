"""Trackers: what a reader of their files finds, and one line where their package is missing."""

import importlib.util
import json
import subprocess
import sys

import pytest

from lcx.cli import main
from lcx.config import apply, load
from lcx.errors import ConfigError
from lcx.study.run import run_member
from lcx.train.metrics import read
from tests.test_study_sweep import CONFIG


@pytest.fixture
def path(tmp_path):
    (tmp_path / "text").mkdir()
    for n in range(10):
        text = f"the number {n} is not the number {n + 1}. " * 8
        (tmp_path / "text" / f"{n}.txt").write_text(text)
    (tmp_path / "tiny.py").write_text(CONFIG.format(text=tmp_path / "text", out=tmp_path / "runs"))
    return str(tmp_path / "tiny.py")


def test_tensorboard_files_hold_the_logged_scalars(path, tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  the format is TFRecord

    run_member(load(path, ["runtime.trackers=tensorboard"]), tmp_path / "run", test=False)
    found = {}
    for file in sorted((tmp_path / "run/tensorboard").iterdir()):
        content = file.read_bytes()
        while content:  # length (8 bytes), its checksum (4), the record, its checksum (4)
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12:12 + size])
            content = content[16 + size:]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    rows = read(tmp_path / "run/metrics.jsonl")
    assert len(rows) == 6
    for row in rows:
        assert found["loss", row["step"]] == pytest.approx(row["loss"], rel=1e-6)
        assert ("learning_rate", row["step"]) in found


def test_wandb_works_offline(path, tmp_path):
    pytest.importorskip("wandb")
    spec = '[{"name": "wandb", "project": "mine"}]'
    run_member(load(path, [f"runtime.trackers={spec}"]), tmp_path / "run", test=False)
    files = list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1 and b"grad_norm" in files[0].read_bytes()


def test_a_missing_package_is_one_line_before_anything_runs(path, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *a: None if name == "tensorboardX" else find(name, *a))
    assert main(["train", path, "--config.runtime.trackers=tensorboard"]) == 2
    told = capsys.readouterr().err
    assert "pip install 'lcx[track]'" in told and told.count("\n") == 1
    assert not (tmp_path / "runs/tiny").exists()


def test_trackers_are_components_and_do_not_change_the_run(path):
    config = load(path)
    assert config.runtime.trackers is None
    for wrong, message in (("tensorbord", "did you mean 'tensorboard'"),
                           ({"name": "wandb", "projekt": "x"}, "did you mean 'project'"),
                           ({"name": "wandb", "folder": "x"}, "no option 'folder'"),
                           ({"name": "wandb", "mode": "of"}, "one of 'offline'")):
        with pytest.raises(ConfigError, match=message):
            load(path, {"runtime.trackers": wrong})
    both = apply(config, {"runtime.trackers": ["tensorboard", "wandb"]})
    assert json.loads(json.dumps(both.runtime.trackers)) == [{"name": "tensorboard"},
                                                            {"name": "wandb"}]


def test_lcx_needs_none_of_them():
    code = ("import sys; import lcx.study.run;"
            "assert not {'tensorboardX', 'wandb', 'optuna', 'tensorflow'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
