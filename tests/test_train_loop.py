"""The loop around the step: checkpoints, damage, other meshes, NaN, signals, files, progress."""

import json
import math
import shutil
import signal

import jax
import numpy as np
import pytest

from lcx import sharding
from lcx.errors import DataError
from lcx.train import (
    CheckpointError,
    CheckpointMismatch,
    Checkpoints,
    Interrupted,
    NonFinite,
    build_program,
    load_params,
    state_hash,
    train,
)
from lcx.train.checkpoint import steps
from lcx.train.lock import Locked, lock
from lcx.train.manifest import batch_id, flat
from lcx.train.metrics import MetricsFile, read
from lcx.train.progress import Progress
from tests.train_stand_in import Batches, StandIn, config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of six steps with checkpoints 4 and 6: (config, folder, final state)."""
    folder = tmp_path_factory.mktemp("run")
    c = config(steps=6, checkpoint_every=2)
    return c, folder, train(c, Batches(c), folder, model=StandIn())


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def program(finished):
    return at(finished[0], (1, 1, 1))


def at(c, sizes, model=None):
    mesh = sharding.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        return build_program(c, model or StandIn(), mesh)


def test_a_finished_run_keeps_the_last_two_and_is_not_trained_again(finished):
    c, folder, state = finished
    assert steps(folder / "checkpoints") == [4, 6]
    data = Batches(c)
    again = train(c, data, folder, model=StandIn())
    assert state_hash(again) == state_hash(state) and int(again.step) == 6
    assert data.count == 6  # set from the checkpoint, and not moved on


def test_rows_say_what_was_seen(finished):
    c, folder, _ = finished
    rows, data = read(folder / "metrics.jsonl"), Batches(c)
    batches = [next(data) for _ in range(6)]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [r["batch"] for r in rows] == [batch_id(b) for b in batches]
    assert np.cumsum([(b["weights"] > 0).sum() for b in batches]).tolist() == \
        [r["train_tokens"] for r in rows]
    assert rows[-1]["loss"] < rows[0]["loss"]
    other = {**batches[0], "weights": batches[0]["weights"] + 1}
    assert batch_id(other) != batch_id(batches[0])


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 4, 1), (1, 1, 8), (2, 2, 2)])
def test_restoring_onto_another_mesh(finished, program, sizes):
    c, folder, state = finished
    moved = at(c, sizes)
    losses = []
    for one in (program, moved):
        restored, saved = Checkpoints(folder / "checkpoints").restore(one.abstract)
        assert saved.step == 6 and saved.data == {"count": 6}
        assert state_hash(restored) == state_hash(state)
        for name, leaf in flat(restored).items():
            assert leaf.sharding.is_equivalent_to(flat(one.abstract)[name].sharding, leaf.ndim)
        with jax.set_mesh(one.mesh):
            data = Batches(c)
            losses.append(one.step(restored, one.constants(), one.place(next(data)))[1]["loss"])
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-5)


def test_parameters_alone_for_evaluation(finished, program):
    params = load_params(finished[1] / "checkpoints", program.abstract.params)
    jax.tree.map(np.testing.assert_array_equal, params, finished[2].params)
    with pytest.raises(CheckpointMismatch, match="params.query"):
        load_params(finished[1] / "checkpoints", at(finished[0], (1, 1, 1), StandIn(4)).abstract
                    .params)


def test_another_model_lists_every_leaf_and_loads_nothing(finished):
    c, folder, _ = finished
    with pytest.raises(CheckpointMismatch) as error:
        train(c, Batches(c), folder, model=StandIn(heads=4, depth=2))
    text = str(error.value)
    for name in ("query", "out", "gain", "slope"):
        for leaf in (f"params.{name}", f"opt_state.0.mu.{name}", f"opt_state.0.nu.{name}"):
            assert f"  {leaf}: the checkpoint has" in text
    assert "12 leaves" in text and "embedding" not in text
    assert steps(folder / "checkpoints") == [4, 6]
    sgd = config(optimizer=dict(name="sgd"), steps=6)
    with pytest.raises(CheckpointMismatch, match="opt_state.0.count: .* the model nothing"):
        train(sgd, Batches(sgd), folder, model=StandIn())


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def replace(file, old, new):
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new))


def largest(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


DAMAGE = {
    "a flipped bit in the parameters": lambda c: flip(largest(c / "params")),
    "a flipped bit in the optimizer": lambda c: flip(largest(c / "optimizer")),
    "a flipped bit in the manifest": lambda c: flip(largest(c / "manifest")),
    "another data state": lambda c: replace(largest(c / "manifest"), b'"count": 6', b'"count": 5'),
    "an empty file": lambda c: largest(c / "params").write_bytes(b""),
    "a truncated manifest": lambda c: largest(c / "manifest").write_text('{"step": 6, "da'),
    "a missing folder": lambda c: shutil.rmtree(c / "optimizer"),
    "a flipped bit where no leaf is": lambda c: flip(c / "_CHECKPOINT_METADATA"),
    "an added file": lambda c: (c / "params/x").write_text("x"),
    "nothing in it": lambda c: (shutil.rmtree(c), c.mkdir()),
}


SEALED = ("a flipped bit where no leaf is", "an added file")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(finished, copy, kind, caplog):
    c, _, state = finished
    if kind not in SEALED:  # the hashes of the leaves see it too
        (copy / "checkpoints/6/files.json").unlink()
    DAMAGE[kind](copy / "checkpoints/6")
    if kind == "an empty file":
        with pytest.raises(CheckpointError, match="checkpoints/6"):
            load_params(copy / "checkpoints", state.params)
    again = train(c, Batches(c), copy, model=StandIn())  # trains 4 -> 6 once more
    assert "damaged checkpoint" in caplog.text and "checkpoints/6" in caplog.text
    assert state_hash(again) == state_hash(state)
    assert [r["step"] for r in read(copy / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [p.name for p in (copy / "checkpoints.damaged").iterdir()] == ["6.0"]
    assert steps(copy / "checkpoints") == [4, 6]


def test_no_good_checkpoint_at_all_is_an_error_and_not_a_fresh_start(finished, copy):
    c = finished[0]
    for step in (4, 6):
        flip(largest(copy / f"checkpoints/{step}/manifest"))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[4, 6\]"):
        train(c, Batches(c), copy, model=StandIn())


def test_a_damaged_older_checkpoint_and_litter_do_not_stand_in_the_way(finished, copy, caplog):
    c = config(steps=8, checkpoint_every=2)
    for file in list((copy / "checkpoints/4").rglob("*")):
        if file.is_file():
            file.write_bytes(b"")
    (copy / "checkpoints/notes").mkdir()
    (copy / "checkpoints/8.orbax-checkpoint-tmp-1").mkdir()
    (copy / "checkpoints/7").write_text("a file")
    assert int(train(c, Batches(c), copy, model=StandIn()).step) == 8
    assert steps(copy / "checkpoints") == [6, 8] and "damaged checkpoint" not in caplog.text


def test_a_failed_last_save_is_noticed(finished, copy, program):
    _, folder, state = finished
    checkpoints = Checkpoints(copy / "checkpoints")
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").write_text("in the way")
    with pytest.raises((CheckpointError, OSError)):
        checkpoints.save(6, state, {}, 0)
        checkpoints.finish(6)
    quiet = Checkpoints(copy / "elsewhere")
    with pytest.raises(CheckpointError, match="step 6 is not there"):
        quiet.finish(6)
    damaged = Checkpoints(shutil.copytree(folder / "checkpoints", copy / "third"))
    flip(largest(copy / "third/6/params"))
    with pytest.raises(CheckpointError, match="third/6"):
        damaged.finish(6)


def test_space_is_checked_before_the_run(finished, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    data = Batches(finished[0])
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.* bytes .* only 1,000 are free"):
        train(finished[0], data, tmp_path, model=StandIn())
    assert data.count == 0


class Poisoned(Batches):
    def __next__(self):
        batch = super().__next__()
        if self.count == 4:
            batch["weights"][0, 0] = np.nan
        return batch


def test_nan_stops_at_most_one_step_later_and_is_never_saved(tmp_path):
    c = config(seed=3, checkpoint_every=2)
    data = Poisoned(c)
    with pytest.raises(NonFinite, match="step 4: loss is nan") as error:
        train(c, data, tmp_path, model=StandIn())
    assert str(tmp_path / "nonfinite.json") in str(error.value)
    assert data.count <= 5
    assert steps(tmp_path / "checkpoints") == [2]
    assert [r["step"] for r in read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    same = Poisoned(c)
    batch = [next(same) for _ in range(4)][-1]
    assert report["batch"] == batch_id(batch) and report["seed"] == 3 and report["loss"] == "nan"
    assert report["documents"] == np.unique(batch["document"]).tolist()


def test_parameters_that_overflow_are_not_saved(tmp_path):
    c = config(optimizer=dict(name="sgd", learning_rate=1e38), checkpoint_every=1, clip=0.0)
    with pytest.raises(NonFinite, match="param_norm"):
        train(c, Batches(c), tmp_path, model=StandIn())
    assert steps(tmp_path / "checkpoints") == []


class Signalled(Batches):
    def __next__(self):
        if self.count == 2:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # a second one is safe
        return super().__next__()


def test_sigterm_saves_and_leaves_with_the_documented_code(tmp_path):
    c, before = config(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="after step 3 of 20") as stop:
        train(c, Signalled(c), tmp_path, model=StandIn())
    assert stop.value.code == 75
    assert steps(tmp_path / "checkpoints") == [3]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_the_last_step_still_leaves_with_the_code(tmp_path):
    c = config(steps=3)
    with pytest.raises(Interrupted, match="after step 3 of 3"):
        train(c, Signalled(c), tmp_path, model=StandIn())
    assert int(train(c, Batches(c), tmp_path, model=StandIn()).step) == 3


def test_data_that_ends_early_is_an_error(tmp_path):
    class Short(Batches):
        def __next__(self):
            if self.count == 3:
                raise StopIteration
            return super().__next__()

    c = config()
    with pytest.raises(DataError, match="ended after 3 of 20 batches"):
        train(c, Short(c), tmp_path, model=StandIn())


def test_a_run_folder_takes_one_trainer(finished, tmp_path):
    with lock(tmp_path), pytest.raises(Locked, match="in use"):
        train(finished[0], Batches(finished[0]), tmp_path, model=StandIn())


def test_metrics_file_survives_a_torn_tail(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (1, 2, 3):
        file.append({"step": step, "loss": 1.5})
    file.close()
    with open(path, "a") as torn:
        torn.write('{"step": 4, "lo')
    assert [r["step"] for r in read(path)] == [1, 2, 3]
    assert "line 4 is torn" in caplog.text
    file = MetricsFile(path, step=2)
    file.append({"step": 3, "loss": 1.0})
    file.close()
    assert path.read_text().splitlines() == ['{"step": 1, "loss": 1.5}', '{"step": 2, "loss": 1.5}',
                                             '{"step": 3, "loss": 1.0}']
    with pytest.raises(ValueError):
        MetricsFile(path, step=3).append({"step": 4, "loss": math.nan})


class Stream:
    def __init__(self, tty):
        self.tty, self.text = tty, ""

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_is_quiet_without_a_terminal():
    stream, now = Stream(False), [0.0]
    progress = Progress(100, 0, stream=stream, clock=lambda: now[0])
    for step in range(1, 101):
        progress.update(step, 2.0, 500)
        now[0] += 1.0
    progress.close()
    lines = stream.text.splitlines()
    assert len(lines) == 5 and "\r" not in stream.text
    assert lines[1] == "step 31/100  loss 2.0000  500 tokens/s  1:09 left"
    assert lines[-1].startswith("step 100/100")


def test_progress_bar_on_a_terminal():
    stream = Stream(True)
    progress = Progress(3, 1, stream=stream, clock=iter([0.0, 2.0]).__next__)
    for step in (2, 3):
        progress.update(step, 1.25, 100)
    progress.bar.refresh()
    progress.close()
    assert "loss 1.2500, 50 tok/s" in stream.text and "3/3" in stream.text


def test_state_hash_sees_values_names_shapes_and_the_data_state():
    tree = {"a": np.zeros((2, 3), np.float32)}
    hashes = [state_hash(t, d) for t, d in [
        (tree, None), ({"b": tree["a"]}, None), ({"a": tree["a"].T}, None), (tree, {"count": 1}),
        ({"a": np.where(np.eye(2, 3) > 0, -0.0, 0.0).astype(np.float32)}, None)]]
    assert len(set(hashes)) == 5 and state_hash(dict(tree)) == hashes[0]
