"""Plants faults into copies of this tree, one each, and counts those that the tests notice.

    python tests/mutants.py                       # ten by hand and 60 swapped operators
    python tests/mutants.py --only "a sign" --jobs 2

First the everyday suite runs once on the tree as it is, in shares, and writes down which test calls
which function. A mutant of a function then meets the tests that call it, the quick and various ones
first, until one fails: killed. In a second round the survivors meet the calling tests that the
first had no time for. Results are appended to a file as they come; a run that is stopped goes on
where it was. A mutant that no test noticed is equivalent, or a hole in the tests.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.mutation import sites  # noqa: E402

LEFT_OUT = (".git", ".cache", ".venv", ".pytest_cache", ".ruff_cache", "runs", "data", "build",
            "dist", "shared")  # of the root
LAWS = "tests/laws/"  # slow to collect: what others kill never meets them
HANGS = 120  # seconds beyond its budget after which a run counts as hung: the mutant never ends


def main() -> int:
    args = arguments()
    mutants = sites.by_hand(ROOT) + sites.drawn(ROOT, args.count, args.seed)
    if args.only:
        mutants = [m for m in mutants if any(word in m.name for word in args.only)]
    if args.list:
        print("\n".join(f"{m.kind}: {m.name} [{m.function}]" for m in mutants))
        return 0
    work = Work(args)
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            if not work.complete.exists():
                list(pool.map(work.record, range(args.jobs)))
                work.complete.touch()
            for stage in (1, 2):
                done = work.results()
                waiting = [m for m in mutants if done.get(m.name, {}).get("stage", 0) < stage
                           and not done.get(m.name, {}).get("killed")]
                list(pool.map(lambda mutant, stage=stage: work.meet(mutant, stage), waiting))
        except TimeUp:
            print("time is up; the same command goes on from here")
    summary(mutants, work.results())
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--jobs", type=int, default=2, help="processes at once, each in a tree of its own")
    add("--seconds", type=float, default=1e6, help="stop cleanly after so many")
    add("--budget", type=float, default=75, help="seconds of tests of a mutant in the first round")
    add("--more", type=float, default=600, help="seconds of tests of a survivor in the second")
    add("--count", type=int, default=60, help="swapped operators to draw")
    add("--seed", type=int, default=1, help="of the draw")
    add("--only", action="append", help="only mutants whose name holds this; may be repeated")
    add("--tests", nargs="*", default=["tests"], help="what is collected, such as tests/positions")
    add("--state", type=Path, default=ROOT / ".cache" / "mutants",
        help="trees, compiled programs and the record of who calls what")
    add("--out", type=Path, help="results, one JSON object a line (results.jsonl in the state)")
    add("--list", action="store_true", help="name the mutants and stop")
    return parser.parse_args()


class TimeUp(Exception):
    """The whole run has had its seconds."""


class Work:
    """Copies of the tree, the record of the suite, and the results file."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.state = args, args.state.resolve()
        self.ends = time.monotonic() + args.seconds
        self.out = (args.out or self.state / "results.jsonl").resolve()
        self.complete = self.state / "recorded"  # there once all shares of the suite have run
        self.lock, self.slots, self.copied = threading.Lock(), {}, set()
        self.clock = int(time.time())
        self.state.mkdir(parents=True, exist_ok=True)

    def record(self, share: int) -> None:
        """Run one share of the suite on the tree as it is, from where an earlier run was stopped.
        """
        code, words = self.pytest(self.args.tests, self.left(), dict(
            record=str(self.state / f"record-{share}-of-{self.args.jobs}.jsonl"), calls=True,
            share=[share, self.args.jobs]))
        if code not in (0, 1, 5):
            raise SystemExit(f"the suite does not run on the tree as it is: {words}")

    @functools.cached_property
    def sound(self) -> list[dict]:
        """The records of tests that pass on the tree as it is, the quickest first."""
        lines = [line for path in sorted(self.state.glob("record-*.jsonl"))
                 for line in path.read_text().splitlines()]
        found = {record["test"]: record for record in map(json.loads, lines)}
        failed = [name for name, r in found.items() if "failed" in r["outcomes"]]
        print(f"{len(found)} tests, {sum(r['seconds'] for r in found.values()):.0f} s; left out "
              f"because they fail as it is: {failed or 'none'}", flush=True)
        return sorted((r for r in found.values() if r["outcomes"] == ["passed"]),
                      key=lambda record: record["seconds"])

    def left(self) -> float:
        """Seconds of the whole run that are left."""
        return self.ends - time.monotonic()

    def meet(self, mutant: sites.Mutant, stage: int) -> None:
        """Run the tests that call a mutant's function on a tree that holds it."""
        began, tree = time.monotonic(), self.tree()
        budget = self.args.budget if stage == 1 else self.args.more
        met = self.state / f"met-{zlib.crc32(mutant.name.encode())}"
        names = self.callers(mutant.function)
        ran = met.read_text().splitlines() if met.exists() else []
        sound = (tree / mutant.path).read_bytes()
        mutant.plant(tree)
        self.stamp(tree / mutant.path)
        killed = by = None
        try:
            for group in (False, True):
                wanted = [n for n in names if n not in set(ran) and n.startswith(LAWS) == group]
                seconds = min(budget - (time.monotonic() - began), self.left() - 15)
                if not killed and wanted and seconds > 0:
                    killed, by, some = self.try_tests(wanted, seconds)
                    ran += some
        finally:
            (tree / mutant.path).write_bytes(sound)
            self.stamp(tree / mutant.path)
        met.write_text("\n".join(ran))
        if not killed and len(ran) < len(names) and self.left() < 20:
            raise TimeUp
        line = dict(mutant=mutant.name, kind=mutant.kind, stage=stage, killed=bool(killed), by=by,
                    ran=len(ran), calling=len(names), seconds=round(time.monotonic() - began, 1))
        with self.lock, open(self.out, "a") as file:
            file.write(json.dumps(line) + "\n")
            print(f"{'killed  ' if killed else 'survived'} {mutant.name}: {by or line['ran']} "
                  f"({line['seconds']} s)", flush=True)

    def callers(self, function: str) -> list[str]:
        """Tests that call a function, quick and various ones first; all tests where none does,
        as of a function that only a process of its own or an import calls."""
        with self.lock:
            records = self.sound
        found, seen = [], {}
        for record in [r for r in records if function in r["functions"]] or records:
            case = record["test"].split("[")[0]
            seen[case] = seen.get(case, 0) + 1  # the tenth case of one test says little more
            found.append((record["seconds"] * seen[case], record["test"]))
        return [name for _, name in sorted(found)]

    def try_tests(self, names: list[str], seconds: float) -> tuple[bool, str, list[str]]:
        """Whether the tests notice, which of them or what else does, and those that ran."""
        listed = self.state / f"tests-{self.slots[threading.get_ident()]}"
        record = listed.with_suffix(".jsonl")
        listed.write_text("\n".join(names))
        record.unlink(missing_ok=True)
        files = list(dict.fromkeys(name.split("::")[0] for name in names))
        code, words = self.pytest(["-x", *files], seconds, dict(
            tests=str(listed), record=str(record), seconds=seconds))
        lines = record.read_text().splitlines() if record.exists() else []
        found = [json.loads(line) for line in lines]
        ran = [one["test"] for one in found]
        for one in found:
            if "failed" in one["outcomes"]:
                return True, one["test"], ran
        if code in (0, 5) or code == 2 and ran:  # all passed, or there was no time for more
            return False, "", ran
        return True, f"exit code {code} after {len(ran)} tests: {words}", ran

    def pytest(self, options: list[str], seconds: float, told: dict) -> tuple[int | None, str]:
        """Exit code (None: hung) and last line of pytest in this thread's tree."""
        environment = dict(
            os.environ, LCX_MUTATION=json.dumps(told), PYTHONPATH=os.pathsep.join(
                [str(self.tree()), *filter(None, [os.environ.get("PYTHONPATH")])]),
            JAX_COMPILATION_CACHE_DIR=str(self.state / "programs"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.02")
        command = [sys.executable, "-m", "pytest", "-p", "tests.mutation.watch", "-p",
                   "no:cacheprovider", "-q", "--tb=line", *options]
        if self.left() < 10:
            raise TimeUp
        process = subprocess.Popen(command, cwd=self.tree(), env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        self.pin(process.pid)
        try:
            words, _ = process.communicate(timeout=min(self.left(), seconds + HANGS))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if self.left() < 10:
                raise TimeUp from None
            return None, "hung"
        return process.returncode, (words.strip().splitlines() or [""])[-1]

    def tree(self) -> Path:
        """This thread's copy of the tree."""
        with self.lock:
            slot = self.slots.setdefault(threading.get_ident(), len(self.slots))
        tree = self.state / f"tree-{slot}"
        if slot not in self.copied:
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(ROOT, tree, ignore=lambda folder, names: {
                name for name in names if name == "__pycache__"
                or Path(folder) == ROOT and name in LEFT_OUT})
            self.copied.add(slot)
        return tree

    def pin(self, process: int) -> None:
        """One core for each process, or they would wait for one another's threads."""
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            slot = self.slots[threading.get_ident()]
            os.sched_setaffinity(process, {cores[slot % len(cores)]})

    def stamp(self, path: Path) -> None:
        """A time of change that no compiled file knows yet."""
        with self.lock:
            self.clock += 2
            os.utime(path, (self.clock, self.clock))

    def results(self) -> dict[str, dict]:
        """The last line of each mutant."""
        lines = self.out.read_text().splitlines() if self.out.exists() else []
        return {line["mutant"]: line for line in map(json.loads, lines)}


def summary(mutants: list[sites.Mutant], results: dict[str, dict]) -> None:
    """Counts of both sets, and the survivors."""
    for title, some in (("by hand", [m for m in mutants if m.kind == "by hand"]),
                        ("drawn", [m for m in mutants if m.kind != "by hand"])):
        met = [results[m.name] for m in some if m.name in results]
        print(f"{title}: {sum(r['killed'] for r in met)} killed of {len(met)} that ran, "
              f"{len(some)} in all")
        for r in met:
            if not r["killed"]:
                print(f"  survived {r['ran']} of {r['calling']} calling tests: {r['mutant']}")


if __name__ == "__main__":
    sys.exit(main())
