"""Sweeps and runs: a whole small run, what is skipped, what goes on, and members that die."""

import fcntl
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from lcx.config import apply, code_version, load, run_id
from lcx.errors import ConfigError, DataError
from lcx.study import flops, records
from lcx.study.describe import component, overrides_label
from lcx.study.preflight import check, check_data
from lcx.study.run import evaluate_member, run_member
from lcx.study.status import Busy, locked, read_status, write_status
from lcx.study.sweep import Worker, expand, sweep
from lcx.train import Interrupted
from lcx.train.metrics import read as read_metrics

CONFIG = '''
from lcx.config import base_config

def get_config(arg=None):
    config = base_config()
    model, data = config.experiment.model, config.experiment.data
    model.width, model.depth, model.mixer = 16, 1, dict(name="attention", num_heads=2)
    data.corpus = dict(name="files", paths="{text}")
    data.train_length, data.batch_size, data.validation = 16, 8, 0.4
    config.experiment.train.steps = 6
    config.experiment.eval.max_factor = 2
    config.experiment.eval.targets, config.experiment.eval.resamples = 16, 50
    config.runtime.out, config.runtime.data_cache = "{out}", "{out}/cache"
    config.runtime.mesh.data = 1  # of the eight devices of the tests
    config.runtime.compile_cache, config.runtime.log_every = "", 1
    return config

def sweep(arg=None):
    for position in ("rope", "no_pe"):
        for seed in range(2):
            yield {{"experiment.model.position": position, "experiment.seed": seed}}
'''

# Answers as lcx.study.worker does, without jax; the member of seed 1 on rope takes it down.
STAND_IN = '''
import json, os, signal, sys
for line in sys.stdin:
    request = json.loads(line)
    with open("{log}", "a") as file:
        file.write(next(iter(request)) + "\\n")
    config = next(iter(request.values()))["experiment"]
    if "run" in request and (config["seed"], config["model"]["position"]["name"]) == (1, "rope"):
        os.kill(os.getpid(), signal.SIGKILL)
    state = "ok" if "check" in request else "finished"
    print(json.dumps({{"state": state}}), flush=True)
'''


@pytest.fixture
def path(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(10):
        (text / f"{n}.txt").write_text(f"the number {n} is not the number {n + 1}. " * 8)
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG.format(text=text, out=tmp_path / "runs"))
    return str(file)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    script, log = tmp_path / "worker.py", tmp_path / "requests"
    script.write_text(STAND_IN.format(log=log))
    monkeypatch.setattr(Worker, "command", (sys.executable, str(script)))
    return log


def test_a_run_trains_tests_and_is_skipped_when_finished(path, tmp_path):
    config = load(path, ["runtime.label=small"])
    folder = tmp_path / "one"
    assert run_member(config, folder)["state"] == "finished"
    rows = records.read(folder)
    found = {(row["metric"], row["method"], row["length"]) for row in rows}
    assert {("bpb", "same_target", c) for c in (4, 8, 12, 16, 32)} <= found
    assert ("bpb", "unigram", 0) in found and ("bpb_gap", "same_target", 32) in found
    row = rows[-1]
    assert (row["run"], row["position"], row["seed"]) == (run_id(config), "rope", 0)
    assert row["mixer"] == "attention(num_heads=2)" and row["extra"]["label"] == "small"
    logged = read_metrics(folder / "metrics.jsonl")
    assert row["train_tokens"] == sum(line["tokens"] for line in logged) <= 6 * 8 * 16
    assert row["checkpoint_step"] == 6
    assert row["flops_per_token"] > 2 * 16 * 256  # the head alone
    assert load(str(folder / "config.json")) == config

    assert row["extra"]["trained_with"] == row["code_version"] == code_version()[0]
    assert json.loads((folder / "config.json").read_text())["code_version"] == code_version()[0]

    before = (folder / "rows.jsonl").read_bytes()
    (folder / "checkpoints").rename(tmp_path / "elsewhere")  # a second run would need them
    assert run_member(config, folder)["state"] == "finished"
    assert (folder / "rows.jsonl").read_bytes() == before
    (tmp_path / "elsewhere").rename(folder / "checkpoints")

    # Killed inside the evaluation: the rows come out once, and the same; nothing is trained again.
    write_status(folder, "running", pid=0, code_version=code_version()[0])
    records.append(folder / "rows.jsonl", [{**rows[0], "length": 7}])
    trained = read_metrics(folder / "metrics.jsonl")
    assert run_member(config, folder)["state"] == "finished"
    assert records.read(folder) == rows
    assert read_metrics(folder / "metrics.jsonl") == trained

    # Another scheme over the same parameters adds rows under its own hash.
    more = evaluate_member(folder, ["experiment.model.position=no_pe"])
    assert {row["position"] for row in more} == {"no_pe"}
    assert {row["config_hash"] for row in records.read(folder)} == {
        run_id(config), run_id(apply(config, {"experiment.model.position": "no_pe"}))}


def test_a_run_that_fails_says_so_and_is_tried_again(path, tmp_path):
    rate = {"experiment.train.optimizer": dict(name="sgd", learning_rate=1e38)}
    config, folder = apply(load(path), rate), tmp_path / "one"
    with pytest.raises(RuntimeError):
        run_member(config, folder)
    status = read_status(folder)
    assert status["state"] == "failed" and "NonFinite" in status["error"]
    assert "Traceback" in (folder / "log.txt").read_text()
    assert not (folder / "rows.jsonl").exists()


@pytest.mark.parametrize(("override", "message"), [
    ("runtime.mesh.data=3", "mesh"),
    ("runtime.backend=cudnnn", "did you mean 'cudnn'"),
    ("experiment.model.mixer.num_heads=3", "num_heads|width"),
    ("experiment.model.depth=0", "depth' must be int, 1 or more"),
    ("experiment.model.dtype=float23", "did you mean 'float32'"),
    ("experiment.eval.max_factor=3", "power of two"),
    ("experiment.train.steps=0", "1 or more"),
    ("experiment.model.remat=some", "unknown remat"),
])
def test_what_cannot_run_is_refused_before_anything_is_written(path, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        check(load(path, [override]))


@pytest.mark.parametrize(("override", "message"), [
    ("experiment.eval.max_factor=1024", "no document"),
    ("experiment.data.corpus={'name': 'files', 'paths': 'nowhere'}", "nowhere"),
    ("experiment.model.vocab_size=17", "vocab_size=17 is smaller"),
])
def test_data_that_cannot_serve_is_refused_before_training(path, override, message):
    with pytest.raises((ConfigError, DataError), match=message):
        check_data(load(path, [override]))


def test_a_member_that_kills_its_process_does_not_stop_the_others(path, stand_in):
    members, said = expand(path), []
    assert not sweep(members, command="lcx sweep tiny.py", say=said.append)
    assert [member.state for member in members] == ["finished", "failed", "finished", "finished"]
    assert "SIGKILL" in members[1].error and "SIGKILL" in " ".join(said)
    assert read_status(members[1].folder)["state"] == "failed"
    kept = json.loads((members[0].folder.parent / "sweep.json").read_text())
    assert kept["command"] == "lcx sweep tiny.py"
    assert [m["state"] for m in kept["members"]] == [m.state for m in members]
    requests = stand_in.read_text().split()
    assert requests[:4] == ["check"] * 4 and requests.count("run") == 4


def test_finished_members_are_skipped_and_jobs_share_the_rest(path, stand_in):
    members = expand(path)
    members[1].folder.mkdir(parents=True)  # the one that would take its worker down
    write_status(members[1].folder, "finished", code_version=code_version()[0])
    assert sweep(members, jobs=3, say=lambda text: None)
    assert stand_in.read_text().split().count("run") == 3
    assert {member.state for member in members} == {"finished"}


def test_one_member_that_cannot_run_stops_the_sweep_before_it_starts(path, stand_in, monkeypatch):
    script = Path(Worker.command[1])
    script.write_text(script.read_text().replace(
        '{"state": state}', '{"state": "failed", "error": "R2: no meaning"}'))
    members = expand(path)
    with pytest.raises(ConfigError, match="rope, .*seed 0: R2: no meaning"):
        sweep(members, say=lambda text: None)
    assert not members[0].folder.parent.exists()


def test_a_real_worker_checks_and_leaves_when_asked(path, tmp_path):
    worker, member = Worker(log=tmp_path / "log"), expand(path)[0]
    try:
        assert worker.ask("check", member.config) == {"state": "ok"}
        member.config = load(path, ["runtime.backend=cudnn", "experiment.model.depth=3",
                                    "experiment.model.pattern=[{}, {}]"])
        assert "depth=3 is not a multiple" in worker.ask("check", member.config)["error"]
        worker.process.stdin.close()  # the driver is gone
        assert worker.process.wait(30) == -signal.SIGTERM
    finally:
        worker.stop()


def test_members_are_expanded_once_each_with_their_names(path, tmp_path):
    members = expand(path, ["experiment.seed=5"])  # the seed axis falls together
    assert [member.label for member in members] == [
        "rope, attention(num_heads=2), seed 5", "no_pe, attention(num_heads=2), seed 5"]
    assert members[0].folder == tmp_path / "runs" / "tiny" / run_id(members[0].config)
    assert overrides_label({"experiment.model.width": 64, "experiment.seed": 1,
                            "experiment.train.optimizer": {"name": "sgd"}}) == \
        "width=64 optimizer=sgd"


def test_components_are_named_by_what_is_not_default():
    assert component("lcx.positions", {"name": "rope", "base": 10000.0}) == "rope"
    assert component("lcx.positions", {"name": "rope", "base": 500.0}) == "rope(base=500.0)"
    assert component("lcx.positions", ["no_pe", {"name": "rope"}]) == "no_pe+rope"


def test_two_processes_cannot_hold_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(Busy, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(ConfigError, match=r"cannot write to /proc/.*runtime\.out"), \
            locked("/proc/lcx/run"):
        pass


def test_torn_status_means_not_done(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "fini')
    assert read_status(tmp_path) == {"state": "waiting"}


def test_writers_of_rows_do_not_tear_each_other(tmp_path):
    row = dict.fromkeys(records.FIELDS) | {"extra": {"x": "y" * 5000}}
    write = lambda n: [records.append(tmp_path / "rows.jsonl", [{**row, "run": f"{n}-{i}"}])
                       for i in range(10)]
    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records.read(tmp_path)) == 40
    with open(tmp_path / "rows.jsonl", "ab") as held:  # mending a torn tail needs the file alone
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=write, args=(4,))
        waiting.start()
        waiting.join(0.3)
        assert len(records.read(tmp_path)) == 40
    waiting.join()
    assert len(records.read(tmp_path)) == 50


def test_flops_of_products_scans_and_branches():
    import jax
    import jax.numpy as jnp

    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert flops.count(jnp.dot, a, b) == 2 * 3 * 5 * 7
    square = jnp.zeros((4, 4))
    loop = lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=6)[0]
    assert flops.count(jax.jit(loop), square) == 6 * 2 * 4**3
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y @ y @ y, x)
    assert flops.count(branch, square) == 2 * 2 * 4**3
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "VALID", feature_group_count=2)
    assert flops.count(conv, jnp.zeros((1, 2, 10)), jnp.zeros((2, 1, 3))) == 2 * 2 * 8 * 3


def test_a_sweep_that_is_stopped_leaves_no_worker_and_says_how_to_go_on(path, stand_in):
    members = expand(path)
    script = Path(Worker.command[1])  # the driver gets SIGTERM while its first member runs
    script.write_text(script.read_text().replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "pass").replace(
        'if "run" in request and', 'if "run" in request:\n        os.kill(os.getppid(), 15)\n'
        '        signal.pause()\n    if'))
    with pytest.raises(Interrupted, match="run the same command again"):
        sweep(members, say=lambda text: None)
    assert stand_in.read_text().split().count("run") == 1
    assert {member.state for member in members} == {"waiting"}
    assert {read_status(member.folder)["state"] for member in members} == {"waiting"}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
