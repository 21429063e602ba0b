"""A run that starts from another: DroPE's second stage, what is taken and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from lcx.config import load, resolve, run_id
from lcx.errors import ConfigError
from lcx.study.run import train_member
from lcx.study.run_folder import folder_of
from lcx.study.start import source_of
from lcx.train import CheckpointMismatch, checkpoint
from tests.test_data import write_corpus

RECIPES = f"{Path(__file__).parent.parent / 'configs' / 'recipes.py'}"
SMALL = ["experiment.model.width=16", "experiment.model.depth=1", "experiment.model.mlp=None",
         "experiment.data.train_length=16", "experiment.data.batch_size=8",
         "experiment.data.deduplicate=False", "experiment.train.steps=2",
         "experiment.eval.max_factor=1", "runtime.compile_cache="]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """config(recipe, overrides) over a small corpus; the rope run of two steps is trained."""
    place = tmp_path_factory.mktemp("stages")
    write_corpus(place / "text", [400] * 40)
    data = json.dumps(dict(name="files", paths=str(place / "text")))

    def config(recipe, *overrides):
        mixer = dict(name="attention", num_heads=2)
        found = load(f"{RECIPES}:{recipe}", [
            *SMALL, f"experiment.data.corpus={data}", f"runtime.out={place / 'runs'}",
            f"runtime.data_cache={place / 'cache'}", *overrides])
        found.experiment.model.pattern = [{**layer, "mixer": mixer} for layer in
                                          found.experiment.model.pattern]
        return found

    config.rope = run(config("rope"))
    return config


def run(config):
    folder = folder_of(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(resolve(config)))
    train_member(config, folder)
    return folder


def leaves(folder):
    """Parameters of the last checkpoint as NumPy arrays, by name."""
    last = checkpoint.steps(folder / "checkpoints")[-1]
    path = folder / "checkpoints" / str(last)
    manifest = checkpoint.read_manifest(path)
    host = {name: np.empty(leaf["shape"], leaf["dtype"]) for name, leaf
            in manifest["leaves"].items() if name.startswith("params.")}
    return checkpoint.read_leaves(path, manifest, host)


def test_drope_goes_on_from_the_parameters_of_rope(stage, caplog):
    caplog.set_level(logging.INFO, "lcx")
    source = f"experiment.train.start_from={stage.rope}"
    second = stage("drope", source, "experiment.seed=1", "runtime.mesh.data=1",
                   "runtime.mesh.fsdp=4", "runtime.mesh.tensor=2")
    assert second.experiment.train.start_from == stage.rope.name  # what is hashed is the run
    folder = run(second)
    count = len(leaves(folder))
    taken = f"starting from step 2 of {stage.rope}: {count} leaves of parameters taken"
    assert taken in caplog.text
    assert "left behind" not in caplog.text and "untrained" not in caplog.text
    before, after = leaves(stage.rope), leaves(folder)
    scratch = leaves(run(stage("drope", "experiment.seed=1")))
    distance = lambda a, b: sum(float(np.abs(a[name] - b[name]).sum()) for name in a)
    assert before.keys() == after.keys()
    assert 0 < distance(before, after) < 0.05 * distance(before, scratch)  # two steps away
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = [json.loads(line) for line in (stage.rope / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 1 and rows[-1]["step"] == 2
    assert rows[-1]["train_tokens"] == first[-1]["train_tokens"] + sum(
        row["tokens"] for row in rows)


def test_the_source_is_part_of_what_a_run_is(stage, tmp_path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(stage.rope, copy)
    here, there = (stage("drope", f"experiment.train.start_from={folder}")
                   for folder in (stage.rope, copy))
    assert run_id(here) == run_id(there) != run_id(stage("drope"))
    assert source_of(there) == copy and source_of(here) == stage.rope
    by_id = stage("drope", f"experiment.train.start_from={stage.rope.name}")
    assert run_id(by_id) == run_id(here) and source_of(by_id) == stage.rope
    assert source_of(stage("drope")) is None


def test_what_cannot_be_started_from_is_said_before_training(stage, tmp_path):
    with pytest.raises(ConfigError, match="neither a run id .* nor the folder of a run"):
        stage("drope", f"experiment.train.start_from={tmp_path}")
    with pytest.raises(ConfigError, match="no run 0123456789 lies in .*give its folder instead"):
        source_of(stage("drope", "experiment.train.start_from=0123456789"))
    copy = tmp_path / "copy"
    shutil.copytree(stage.rope, copy)
    shutil.rmtree(copy / "checkpoints" / "2")
    with pytest.raises(ConfigError, match="has trained 0 of its 2 steps; finish it first"):
        source_of(stage("drope", f"experiment.train.start_from={copy}"))
    other = stage("drope", f"experiment.train.start_from={stage.rope.name}",
                  f"runtime.start_folder={copy}")
    (copy / "config.json").write_text(json.dumps(resolve(stage("rope", "experiment.seed=1"))))
    with pytest.raises(ConfigError, match=f"and not {stage.rope.name}"):
        source_of(other)


def test_only_parameters_of_schemes_may_be_new_or_left(stage, caplog):
    source = f"experiment.train.start_from={stage.rope}"
    config = stage("rope", source)
    config.experiment.model.pattern = [{**config.experiment.model.pattern[0],
                                        "position": ["learned", "kerple"]}]
    run(config)
    assert "new, as untrained as they begin: params.embed_learned_0.table, " in caplog.text
    assert caplog.text.count("mixer.position.1_kerple.") == 2
    wide = stage("rope", source)
    wide.experiment.model.width = 32
    with pytest.raises(CheckpointMismatch, match=r"params.embedding: .*\[256, 16\], the model"):
        train_member(wide, folder_of(wide))
    deeper = stage("rope", source)
    deeper.experiment.model.mlp = dict(name="gated")
    with pytest.raises(CheckpointMismatch, match="beyond the positional schemes, 3 leaves differ"
                                                 "(.|\n)*mlp.*: only the model has it"):
        train_member(deeper, folder_of(deeper))
