"""Drivers of one sweep: who takes which member, with which devices, for how long, of which code."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from lcx.cli.sweep import duration
from lcx.config import apply, base_config, code_version
from lcx.errors import ConfigError
from lcx.study import devices, versions
from lcx.study.run import run_member
from lcx.study.status import held, locked, read_status, write_status
from lcx.study.sweep import Member, sweep
from lcx.study.versions import OtherVersion, others
from lcx.study.workers import Worker

# Answers as lcx.study.worker does, without jax; `{body}` runs one member in its held folder.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
from lcx.config import code_version
from lcx.study.status import Busy, locked, read_status, write_status
for line in sys.stdin:
    request = json.loads(line)
    state = "ok"
    if "run" in request:
        seed = request["run"]["experiment"]["seed"]
        folder, log = Path("{root}") / str(seed), Path("{root}") / "log"
        try:
            with locked(folder):
                if read_status(folder).get("code_version") != code_version()[0]:
                    with open(log, "a") as file:
                        file.write(f"{{seed}} {{os.environ.get('CUDA_VISIBLE_DEVICES')}}\\n")
                    {body}
                    write_status(folder, "finished", code_version=code_version()[0])
            state = "finished"
        except Busy:
            state = "busy"
    print(json.dumps({{"state": state}}), flush=True)
"""


@pytest.fixture
def crew(tmp_path, monkeypatch):
    """Makes the workers run `body`; gives fresh members, one per seed, and what ran so far."""
    def stand_in(body="pass", seeds=4):
        script = tmp_path / "worker.py"
        script.write_text(STAND_IN.format(root=tmp_path, body=body))
        monkeypatch.setattr(Worker, "command", (sys.executable, str(script)))
        return [Member(apply(base_config(), {"experiment.seed": seed}), f"seed {seed}",
                       tmp_path / str(seed)) for seed in range(seeds)]
    return stand_in


def ran(tmp_path):
    return sorted((tmp_path / "log").read_text().splitlines())


def test_two_drivers_at_once_share_the_members_and_both_see_all_finished(crew, tmp_path):
    crew("while len(log.read_text().splitlines()) < 2: time.sleep(0.01)")  # each has one
    drivers, good = [crew("while len(log.read_text().splitlines()) < 2: time.sleep(0.01)")
                     for _ in range(2)], []
    threads = [threading.Thread(target=lambda m=m: good.append(sweep(m, say=lambda text: None)))
               for m in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert good == [True, True]
    assert ran(tmp_path) == [f"{seed} None" for seed in range(4)]  # each exactly once
    for members in drivers:
        assert {member.state for member in members} == {"finished"}


def test_a_member_that_another_process_holds_comes_last_and_is_waited_for(crew, tmp_path):
    members, said = crew(seeds=3), []
    with locked(members[0].folder):
        assert held(members[0].folder)
        thread = threading.Thread(target=sweep, args=(members,), kwargs=dict(say=said.append))
        thread.start()
        while members[2].state != "finished" and thread.is_alive():
            time.sleep(0.01)
        assert members[0].state != "finished" and thread.is_alive()
    assert not held(members[0].folder) and not held(tmp_path / "nowhere")
    thread.join(60)
    assert [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()] == \
        ["1", "2", "0"]
    assert sum("another process" in text for text in said) == 1


def test_a_member_that_hangs_is_ended_and_the_others_go_on(crew, tmp_path, monkeypatch):
    class Limit(threading.Thread):  # runs out when the member hangs, however slow the machine
        def __init__(self, seconds, then):
            super().__init__()
            self.then, self.over = then, threading.Event()
            assert seconds == 3

        def run(self):
            while not self.over.wait(0.01):
                if (tmp_path / "hangs").exists():
                    (tmp_path / "hangs").unlink()
                    self.then()

        def cancel(self):
            self.over.set()

    monkeypatch.setattr(threading, "Timer", Limit)
    monkeypatch.setattr("lcx.study.workers.GRACE", 0.5)
    hang = "(signal.signal(signal.SIGTERM, signal.SIG_IGN), (folder.parent / 'hangs').touch(), "\
           "time.sleep(99))"
    members = crew(f"seed == 1 and {hang}", seeds=3)
    assert not sweep(members, timeout=3, say=lambda text: None)
    assert [member.state for member in members] == ["finished", "failed", "finished"]
    assert "not done in 3 s (--timeout)" in members[1].error
    assert read_status(members[1].folder)["state"] == "failed"


def test_each_member_has_a_process_of_its_own(crew, tmp_path):
    members = crew("(folder / 'pid').write_text(str(os.getpid()))", seeds=3)
    assert sweep(members, say=lambda text: None)
    assert len({(member.folder / "pid").read_text() for member in members}) == 3


def test_gpus_are_shared_out(crew, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    members = crew("while len(log.read_text().splitlines()) < 2: time.sleep(0.01)", seeds=2)
    assert sweep(members, say=lambda text: None)
    assert {line.split()[1] for line in ran(tmp_path)} == {"4", "5"}


def test_which_gpus_there_are_is_known_without_jax(tmp_path):
    assert devices.gpus({"CUDA_VISIBLE_DEVICES": "0, 3"}) == ["0", "3"]
    assert devices.gpus({"CUDA_VISIBLE_DEVICES": ""}) == devices.gpus({"PATH": "/nowhere"}) == []
    assert devices.gpus({"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cpu"}) == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: a)'; echo 'GPU 1: NVIDIA H100'\n")
    tool.chmod(0o755)
    code = "from lcx.study.devices import gpus; import os, sys;"\
           "print(gpus(os.environ), 'jax' in sys.modules)"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "JAX_PLATFORMS": ""}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    import subprocess
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, check=True).stdout
    assert told == "['0', '1'] False\n"


@pytest.mark.parametrize(("jobs", "members", "need", "expected"), [
    (None, 9, 1, [("0",), ("1",), ("2",), ("3",)]),  # one GPU each
    (None, 2, 1, [("0",), ("1",)]),
    (None, 9, 2, [("0", "1"), ("2", "3")]),
    (None, 9, 8, [("0", "1", "2", "3")]),  # the member's own check says what is missing
    (2, 9, 1, [("0", "1"), ("2", "3")]),
    (1, 9, 1, [("0", "1", "2", "3")]),
])
def test_shares(monkeypatch, jobs, members, need, expected):
    monkeypatch.setattr(devices, "gpus", lambda: ["0", "1", "2", "3"])
    assert [share.gpus for share in devices.shares(jobs, members, need)] == expected


def test_shares_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: ["0", "1", "2", "3"])
    with pytest.raises(ConfigError, match="need 6 GPUs but 4"):
        devices.shares(3, 9, 2)
    monkeypatch.setattr(devices, "gpus", list)
    found = devices.shares(2, 9, 1)
    assert [share.gpus for share in found] == [(), ()]
    mesh = {"runtime.mesh.fsdp": 2, "runtime.mesh.data": -1}
    assert devices.needed([base_config(), apply(base_config(), mesh)]) == 2


def test_durations():
    assert [duration(text) for text in ("90", "90s", "2m", "1.5h")] == [90, 90, 120, 5400]


def test_results_of_other_code_are_neither_reused_nor_replaced_unasked(crew, tmp_path):
    members = crew(seeds=3)
    write_status(members[0].folder, "finished", code_version="v0", trained_with=["v0"])
    write_status(members[1].folder, "running", code_version="v0")
    (members[1].folder / "checkpoints" / "4").mkdir(parents=True)  # half-done
    write_status(members[2].folder, "failed", code_version="v0")  # left nothing to reuse
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(OtherVersion, match=r"seed 0 \(v0\); seed 1 \(v0\)\. Say --rerun"):
        sweep(members, say=lambda text: None)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert sweep(members, old="keep", say=lambda text: None)
    assert ran(tmp_path) == ["1 None", "2 None"]
    assert sweep(crew(seeds=1), old="rerun", say=lambda text: None)
    assert ran(tmp_path) == ["0 None", "1 None", "2 None"]


def test_a_finished_run_trained_by_other_code_is_not_of_this_code(tmp_path):
    write_status(tmp_path, "finished", code_version=code_version()[0], trained_with=["v0"])
    assert others(tmp_path) == ["v0"]
    write_status(tmp_path, "finished", code_version=code_version()[0],
                 trained_with=[code_version()[0]])
    assert others(tmp_path) == []
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "status.json").write_text("{to")  # torn: the config beside it still knows
    assert others(tmp_path) == ["unknown"]
    (tmp_path / "config.json").write_text(json.dumps({"code_version": code_version()[0]}))
    assert others(tmp_path) == []


def test_a_rerun_keeps_the_old_results_where_no_reader_takes_them_for_new(tmp_path):
    for name in ("rows.jsonl", "metrics.jsonl", "config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    write_status(tmp_path, "finished", code_version="v0")
    versions.settle(tmp_path, "keep")
    with pytest.raises(ConfigError, match="none of refuse, keep, rerun"):
        versions.settle(tmp_path, "again")
    versions.settle(tmp_path, "rerun")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]
    assert not list(tmp_path.rglob("rows.jsonl"))
    assert sorted(p.name for p in (tmp_path / "old/0").iterdir()) == [
        "checkpoints", "config.json", "metrics.old.jsonl", "rows.old.jsonl", "status.json"]
    assert versions.settle(tmp_path, "rerun") is None  # nothing left that could be reused


def test_a_run_itself_refuses_what_other_code_made(tmp_path):
    write_status(tmp_path, "finished", code_version="v0")
    with pytest.raises(OtherVersion, match="--keep-old"):
        run_member(base_config(), tmp_path)
    assert run_member(base_config(), tmp_path, old="keep")["code_version"] == "v0"
    assert Path(tmp_path / "log.txt").exists()
