"""A sweep that is killed at twenty random times and rerun ends as the uninterrupted one did."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcx.study import records
from lcx.study.status import read_status
from lcx.train.checkpoint import saved, steps
from lcx.train.metrics import read as read_metrics

ROOT = Path(__file__).parents[1]
KILLS = 20
CONFIG = '''
from lcx.config import base_config

def get_config(arg=None):
    config = base_config()
    model, data = config.experiment.model, config.experiment.data
    model.width, model.depth, model.mixer = 16, 1, dict(name="attention", num_heads=2)
    data.corpus = dict(name="files", paths="{text}")
    data.train_length, data.batch_size, data.validation = 16, 8, 0.4
    config.experiment.train.steps = 60
    config.experiment.eval.max_factor = 2
    config.experiment.eval.targets, config.experiment.eval.resamples = 16, 50
    config.runtime.out = "{out}"
    config.runtime.data_cache, config.runtime.compile_cache = "{out}/cache", "{out}/xla"
    config.runtime.checkpoint_every, config.runtime.log_every = 10, 1
    return config

def sweep(arg=None):
    for position in ("rope", "no_pe", "alibi"):
        for seed in range(2):
            yield {{"experiment.model.position": position, "experiment.seed": seed}}
'''


def start(config, log):
    """`lcx sweep` as the leader of a process group of its own, workers included."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
                   "JAX_COMPILATION_CACHE_DIR": ""}
    command = [sys.executable, "-m", "lcx", "sweep", str(config), "--jobs", "2"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log,
                            start_new_session=True)


def outcome(folder):
    """What a sweep has come to: for each run its state, its metrics and its raw rows."""
    found = {}
    for run in sorted(p.parent for p in folder.glob("*/config.json")):
        last = steps(run / "checkpoints")[-1]
        manifest = json.loads((run / "checkpoints" / str(last) / "manifest/metadata").read_text())
        metrics = [{k: v for k, v in row.items() if k != "time"}
                   for row in read_metrics(run / "metrics.jsonl")]
        found[run.name] = dict(
            status=read_status(run)["state"], step=saved(run / "checkpoints").step,
            state=manifest["digest"], metrics=metrics,
            rows=[json.loads(line) for line in (run / records.NAME).read_text().splitlines()])
    return found


def check(got, want):
    assert got == want
    for run in got.values():  # each exactly once
        identities = [records.identity(row) for row in run["rows"]]
        assert len(identities) == len(set(identities))


@pytest.mark.full
def test_killed_and_rerun_it_ends_as_the_uninterrupted_one(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(10):
        (text / f"{n}.txt").write_text(f"the number {n} is not the number {n + 1}. " * 8)
    configs = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        configs[name] = tmp_path / name / "tiny.py"
        configs[name].write_text(CONFIG.format(text=text, out=tmp_path / name / "runs"))
    with open(tmp_path / "log", "w") as log:
        began = time.monotonic()
        assert start(configs["whole"], log).wait() == 0, (tmp_path / "log").read_text()
        whole = time.monotonic() - began
        want = outcome(tmp_path / "whole/runs/tiny")
        assert len(want) == 6 and {run["status"] for run in want.values()} == {"finished"}
        draw, killed, progress = random.Random(), 0, []
        while killed < KILLS:
            process = start(configs["killed"], log)
            # Not sooner than a worker needs to start, or nothing would ever be interrupted.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(2.0, max(8.0, whole / 5)))
            if process.poll() is not None:  # done before the twentieth: once more from the start
                assert process.returncode == 0, (tmp_path / "log").read_text()
                check(outcome(tmp_path / "killed/runs/tiny"), want)
                shutil.rmtree(tmp_path / "killed/runs")
                continue
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            progress.append(len(list((tmp_path / "killed/runs/tiny").glob("*/rows.jsonl"))))
        assert start(configs["killed"], log).wait() == 0, (tmp_path / "log").read_text()
    print(f"{killed} kills; uninterrupted {whole:.0f} s; runs with rows at each kill: {progress}")
    check(outcome(tmp_path / "killed/runs/tiny"), want)
