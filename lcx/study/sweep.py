"""Sweeps: expand, check, run what is not finished, whatever happens to single members."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lcx.config import assign, code_version, load_sweep, run_id
from lcx.domains import Count, Positive, checked
from lcx.errors import ConfigError
from lcx.labels import show
from lcx.study import describe
from lcx.study.adopt import up_to_date
from lcx.study.devices import needed, shares
from lcx.study.names import names
from lcx.study.run_folder import folder_of
from lcx.study.status import held, read_status, write_atomically, write_status
from lcx.study.versions import others, refuse
from lcx.study.workers import Worker, workers

PAUSE = 0.3  # seconds before a look at the next member where another process holds this one


@dataclasses.dataclass
class Member:
    """One run of a sweep and how it went: waiting, running, finished, failed or busy."""

    config: ConfigDict
    label: str  # the arm's name and the seed; no two members have one
    folder: Path
    arm: str = ""
    state: str = "waiting"
    error: str = ""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """What `--json` prints, and sweep.json keeps."""
        return dict(run=run_id(self.config), position=describe.position(self.config),
                    mixer=describe.mixer(self.config), seed=self.config.experiment.seed,
                    label=self.config.runtime.label, arm=self.arm, folder=str(self.folder),
                    state=self.state, error=self.error, seconds=round(self.seconds, 1))


def expand(spec: str, overrides: Iterable[str] = ()) -> list[Member]:
    """The members of a config file's `sweep()`, each experiment once. Raises ConfigError."""
    configs: dict[str, ConfigDict] = {}
    for changes, config in load_sweep(spec, overrides):
        if not config.runtime.label:
            assign(config, "runtime.label", describe.overrides_label(changes))
        configs.setdefault(run_id(config), config)
    return members_of(configs.values())


def members_of(configs: Iterable[ConfigDict]) -> list[Member]:
    """A member for each config, in its folder, named apart from the others."""
    facts = [(config, describe.facts(config)) for config in configs]
    known = names(own for _, own in facts)
    return [Member(config, f"{known[own].label()}, seed {config.experiment.seed}",
                   folder_of(config), known[own].label()) for config, own in facts]


@checked
def sweep(members: Sequence[Member], *, jobs: Count | None = None,
          timeout: Positive | None = None,
          old: str = "refuse", command: str = "", say: Callable[[str], None] = show) -> bool:
    """Run each member in a process of its own, `jobs` at a time; True where all finished.

    All are checked before any starts: ConfigError names the first that cannot run, OtherVersion
    those that other code made (unless `old` is keep or rerun). Then a member that crashes, takes
    its process down or does not end in `timeout` seconds is marked failed and the others go on.
    Another driver of the same sweep takes the members that this one does not hold.
    """
    root = members[0].folder.parent
    split = shares(jobs, len(members), needed(member.config for member in members))
    if old == "refuse":
        refuse([(member.label, others(member.folder)) for member in members])
    todo: queue.Queue[Member] = queue.Queue()
    for member in members:
        if _finished(member, old):
            member.state = "finished"
            say(f"{member.label}: finished before, skipped")
        else:
            todo.put(member)
    with contextlib.ExitStack() as stack:
        threads: list[threading.Thread] = []
        done = threading.Semaphore(0)
        stack.callback(lambda: [thread.join() for thread in threads])  # after the workers' end
        crew = stack.enter_context(workers(root, split[:todo.qsize()], timeout))
        if crew:
            for member in list(todo.queue):
                answer = crew[0].ask("check", member.config)
                if answer["state"] != "ok":
                    raise ConfigError(f"{member.label}: {answer['error']}")
        _write_sweep(root, members, command)
        for worker in crew:
            threads.append(threading.Thread(target=_work,
                                            args=(worker, todo, members, old, say, done)))
            threads[-1].start()
        for _ in threads:  # not join: one that a signal interrupts takes its thread for ended
            done.acquire()
    _write_sweep(root, members, command)
    return all(member.state == "finished" for member in members)


def _finished(member: Member, old: str) -> bool:
    return (read_status(member.folder)["state"] == "finished"
            and (old == "keep" or not others(member.folder))
            and up_to_date(member.folder, member.config))  # else its worker sees to it


def _work(worker: Worker, todo: queue.Queue[Member], members: Sequence[Member], old: str,
          say: Callable[[str], None], done: threading.Semaphore) -> None:
    try:
        while not worker.stopped:
            _run(worker, todo.get_nowait(), todo, members, old, say)
    except queue.Empty:
        pass
    finally:
        done.release()


def _run(worker: Worker, member: Member, todo: queue.Queue[Member], members: Sequence[Member],
         old: str, say: Callable[[str], None]) -> None:
    """Run one member, or put it back where another process is at work on it."""
    began = time.monotonic()
    if _finished(member, old):
        answer = {"state": "finished", "note": "by another driver"}
    elif held(member.folder):
        answer = {"state": "busy"}
    else:
        member.state = "running"
        answer = worker.ask("run", member.config, old=old)
        worker.retire()
    if answer["state"] == "busy":
        if member.state != "busy":
            say(f"{member.label}: another process is at work on it")
        member.state = "busy"
        todo.put(member)
        time.sleep(PAUSE)
        return
    if answer["state"] == "waiting":
        member.state = "waiting"
        return
    if answer.get("died"):  # it could not say so itself
        with contextlib.suppress(ConfigError):  # a full disk: the summary still tells
            write_status(member.folder, "failed", error=answer["error"])
    member.seconds = time.monotonic() - began
    member.state, member.error = answer["state"], answer.get("error", "")
    done = sum(m.state in ("finished", "failed") for m in members)
    note = member.error or answer.get("note") or f"in {member.seconds:.0f} s"
    say(f"[{done}/{len(members)}] {member.label}: {member.state}, {note}")


def _write_sweep(root: Path, members: Sequence[Member], command: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    version, dirty = code_version()
    write_atomically(root / "sweep.json", json.dumps(
        dict(command=command, code_version=version, dirty=dirty,
             members=[member.record() for member in members]), indent=1) + "\n")
