"""`lcx train --dry-run`: says what would run, from the compiled step, and writes nothing."""

import json

import jax
import pytest

from lcx.cli import main
from lcx.config import load, resolve
from lcx.study.run_folder import folder_of
from tests.test_study_sweep import CONFIG


@pytest.fixture
def path(tmp_path):
    (tmp_path / "text").mkdir()
    for n in range(10):
        text = f"the number {n} is not the number {n + 1}. " * 8
        (tmp_path / "text" / f"{n}.txt").write_text(text)
    (tmp_path / "tiny.py").write_text(CONFIG.format(text=tmp_path / "text", out=tmp_path / "runs"))
    return str(tmp_path / "tiny.py")


def told(path, capsys, *words):
    assert main(["train", path, "--dry-run", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_says_what_would_run_and_writes_no_run(path, tmp_path, capsys):
    found = told(path, capsys)
    config = load(path)
    assert found["config"] == resolve(config) and found["folder"] == str(folder_of(config))
    sizes = {record["name"]: record["count"] for record in found["parameters"]}
    assert sizes["embedding"] == found["vocab_size"] * 16
    assert sizes.pop("all") == sum(sizes.values())
    count = sum(sizes.values())
    assert found["tokens"] == 6 * 8 * 16 and found["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    # Six FLOPs per parameter of a matrix and token; attention and the loss add to it.
    assert 0.8 * 6 * count < found["flops_per_token"] < 2 * 6 * count
    state = 3 * 4 * count  # parameters and two moments in float32
    assert state < found["memory"]["state and batch"] < state + 20_000
    assert found["memory"]["peak"] > found["memory"]["state and batch"]
    assert not (tmp_path / "runs" / "tiny").exists()


def test_memory_is_per_device_and_of_this_config(path, capsys):
    one = told(path, capsys)
    longer = told(path, capsys, "--config.experiment.data.batch_size=64")
    assert longer["memory"]["temporary"] > one["memory"]["temporary"]
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    split = told(path, capsys, "--config.runtime.mesh.fsdp=4")
    assert split["mesh"]["fsdp"] == 4
    assert split["parameters"][-1]["bytes_per_device"] < 0.5 * one["parameters"][-1][
        "bytes_per_device"]
    assert split["memory"]["state and batch"] < 0.5 * one["memory"]["state and batch"]


def test_the_text_names_every_parameter(path, capsys):
    assert main(["train", path, "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in ("embedding", "final_norm.scale", "MB/device", "mesh ", "data=1", "FLOPs/token",
                 '"train_length": 16', "nothing was written"):
        assert word in out
    assert main(["train", path, "--dry-run", "--config.experiment.model.mixer.num_heads=3"]) == 2
