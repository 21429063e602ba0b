"""Sweeps: expand, check, run what is not finished, whatever happens to single members."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lcx.config import assign, canonical_json, code_version, load_sweep, run_id
from lcx.errors import ConfigError
from lcx.study import describe
from lcx.study.status import read_status, write_atomically, write_status
from lcx.train.interrupt import EXIT_CODE, Interrupted

PATIENCE = 60.0  # seconds to wait for a folder that another process still holds


@dataclasses.dataclass
class Member:
    """One run of a sweep and how it went: waiting, running, finished, failed or busy."""

    config: ConfigDict
    label: str
    folder: Path
    state: str = "waiting"
    error: str = ""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """What `--json` prints, and sweep.json keeps."""
        return dict(run=run_id(self.config), position=describe.position(self.config),
                    mixer=describe.mixer(self.config), seed=self.config.experiment.seed,
                    label=self.config.runtime.label, folder=str(self.folder), state=self.state,
                    error=self.error, seconds=round(self.seconds, 1))


def expand(spec: str, overrides: Iterable[str] = ()) -> list[Member]:
    """The members of a config file's `sweep()`, each experiment once. Raises ConfigError."""
    members = {}
    for changes, config in load_sweep(spec, overrides):
        if not config.runtime.label:
            assign(config, "runtime.label", describe.overrides_label(changes))
        parts = [describe.position(config), describe.mixer(config), config.runtime.label,
                 f"seed {config.experiment.seed}"]
        folder = Path(config.runtime.out).expanduser() / config.runtime.name / run_id(config)
        members.setdefault(run_id(config),
                           Member(config, ", ".join(p for p in parts if p), folder))
    return list(members.values())


def sweep(members: Sequence[Member], *, jobs: int = 1, command: str = "",
          say: Callable[[str], None] = print) -> bool:
    """Run members in `jobs` worker processes; True where all of them finished.

    All are checked before any starts: ConfigError names the first that cannot run. Then a member
    that crashes, or takes its worker down, is marked failed and the others go on.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs={jobs}: take 1 or more worker processes")
    root = members[0].folder.parent
    todo: queue.Queue[Member] = queue.Queue()
    for member in members:
        if read_status(member.folder)["state"] == "finished":
            member.state = "finished"
            say(f"{member.label}: finished before, skipped")
        else:
            todo.put(member)
    jobs = min(jobs, todo.qsize())
    with contextlib.ExitStack() as stack:
        threads: list[threading.Thread] = []
        done = threading.Semaphore(0)
        stack.callback(lambda: [thread.join() for thread in threads])  # after the workers' end
        workers = stack.enter_context(_workers(root, jobs))
        if workers:
            for member in list(todo.queue):
                answer = workers[0].ask("check", member)
                if answer["state"] != "ok":
                    raise ConfigError(f"{member.label}: {answer['error']}")
        _write_sweep(root, members, command)
        for worker in workers:
            threads.append(threading.Thread(target=_work,
                                            args=(worker, todo, members, say, done)))
            threads[-1].start()
        for _ in threads:  # not join: one that a signal interrupts takes its thread for ended
            done.acquire()
    _write_sweep(root, members, command)
    return all(member.state == "finished" for member in members)


class Worker:
    """A `lcx.study.worker` process, started on first use and again after it died."""

    command = (sys.executable, "-m", "lcx.study.worker")

    def __init__(self, cores: Sequence[int] | None = None, log: Path | None = None):
        self.cores, self.log = cores, log
        self.process: subprocess.Popen | None = None
        self.stopped = False

    def ask(self, what: str, member: Member) -> dict[str, Any]:
        """Send a member's config and wait for the answer; a dead worker answers "failed".

        One that was asked to stop answers "waiting", and is not started again.
        """
        if self.stopped:
            return {"state": "waiting"}
        if self.process is None or self.process.poll() is not None:
            self._start()
        try:
            self.process.stdin.write(f'{{"{what}": {canonical_json(member.config)}}}\n')
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if line:
            return json.loads(line)
        code = self.process.wait()
        if self.stopped or code == EXIT_CODE:
            return {"state": "waiting", "error": "stopped on request"}
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return {"state": "failed", "died": True, "error": f"its process ended: {why} (out of "
                f"memory?); see {self.log or 'above'} and {member.folder / 'log.txt'}"}

    def stop(self) -> None:
        """SIGTERM, on which training saves; then wait."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def _start(self) -> None:
        command = [*self.command]
        command += [json.dumps(list(self.cores))] if self.cores else []
        stderr = open(self.log, "a") if self.log else None  # noqa: SIM115
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=stderr, text=True)
        if stderr:
            stderr.close()


@contextlib.contextmanager
def _workers(root: Path, jobs: int) -> Iterator[list[Worker]]:
    """Workers with a share of the cores each; stopped on the way out, and on SIGTERM."""
    if jobs > 1:
        root.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = lambda n: cores[n::jobs] if jobs > 1 and len(cores) >= jobs else None
    workers = [Worker(share(n), root / f"worker-{n}.log" if jobs > 1 else None)
               for n in range(jobs)]
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield workers
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        for worker in workers:
            worker.stop()


def _stop(*_) -> None:
    raise Interrupted("the sweep was stopped on request; run the same command again to go on")


def _work(worker: Worker, todo: queue.Queue[Member], members: Sequence[Member],
          say: Callable[[str], None], done: threading.Semaphore) -> None:
    try:
        while _run(worker, todo.get_nowait(), members, say):
            pass
    except queue.Empty:
        pass
    finally:
        done.release()


def _run(worker: Worker, member: Member, members: Sequence[Member],
         say: Callable[[str], None]) -> bool:
    """Run one member; False where its worker was asked to stop."""
    member.state, began = "running", time.monotonic()
    answer = worker.ask("run", member)
    while answer["state"] == "busy" and time.monotonic() - began < PATIENCE:
        time.sleep(1.0)  # its last worker may still be on the way out
        answer = worker.ask("run", member)
    if answer["state"] == "waiting":
        member.state = "waiting"
        return False
    if answer.get("died"):  # it could not say so itself
        with contextlib.suppress(ConfigError):  # a full disk: the summary still tells
            write_status(member.folder, "failed", error=answer["error"])
    member.seconds = time.monotonic() - began
    member.state, member.error = answer["state"], answer.get("error", "")
    done = sum(m.state in ("finished", "failed", "busy") for m in members)
    note = f": {member.error}" if member.error else f" in {member.seconds:.0f} s"
    say(f"[{done}/{len(members)}] {member.label}: {member.state}{note}")
    return True


def _write_sweep(root: Path, members: Sequence[Member], command: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    version, dirty = code_version()
    write_atomically(root / "sweep.json", json.dumps(
        dict(command=command, code_version=version, dirty=dirty,
             members=[member.record() for member in members]), indent=1) + "\n")
