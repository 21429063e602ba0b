"""A pytest plugin (`-p tests.mutation.watch`) that is told by the environment, in LCX_MUTATION:
a JSON object of

record: a file that gets a line of JSON for each test: name, outcomes, seconds, and with `calls`
    the functions of lcx that it called ("lcx.ops.pairs:mask"; those inside one count as it);
share: [k, n]: run only the k-th of n shares of what was collected, less what the record has;
tests: a file with the names of tests, one a line: run these, in their order;
seconds: begin no further test after so many.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

TOLD = json.loads(os.environ.get("LCX_MUTATION", "{}"))
ROOT = f"{Path(__file__).parents[2]}{os.sep}"
BEGAN = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Keep the share, or the named tests in their order."""
    kept = items[:]
    if "share" in TOLD:
        number, count = TOLD["share"]
        record = Path(TOLD["record"])
        lines = record.read_text().splitlines() if record.exists() else []
        known = {json.loads(line)["test"] for line in lines}
        kept = [item for item in kept[number::count] if item.nodeid not in known]
    if "tests" in TOLD:
        wanted = {name: n for n, name in enumerate(Path(TOLD["tests"]).read_text().splitlines())}
        kept = sorted((item for item in kept if item.nodeid in wanted),
                      key=lambda item: wanted[item.nodeid])
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Run a test under watch, and write down what it called."""
    began, item.outcomes = time.monotonic(), set()
    with called() as functions:
        yield
    if "record" in TOLD:
        line = dict(test=item.nodeid, outcomes=sorted(item.outcomes), functions=sorted(functions),
                    seconds=round(time.monotonic() - began, 3))
        with open(TOLD["record"], "a") as file:
            file.write(json.dumps(line) + "\n")
    if time.monotonic() - BEGAN > TOLD.get("seconds", float("inf")):
        item.session.shouldstop = "no time for another test"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Remember how each phase of a test ended."""
    report = (yield).get_result()
    item.outcomes.add(report.outcome)


@contextlib.contextmanager
def called():
    """The set of functions of lcx that are called inside this context, in any thread."""
    found: set[str] = set()
    if not TOLD.get("calls"):
        yield found
        return
    known: dict = {}

    def watch(frame, event, _):
        if event == "call":
            code = frame.f_code
            if code not in known:
                known[code] = name_of(code)
            if known[code]:
                found.add(known[code])

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def name_of(code) -> str | None:
    """ "lcx.ops.pairs:mask" of a code object, None of other people's code and of modules."""
    if not code.co_filename.startswith(ROOT + "lcx" + os.sep):
        return None
    path = code.co_filename[len(ROOT):].removesuffix(".py").replace(os.sep, ".")
    function = code.co_qualname.split(".<locals>")[0]
    path = path.removesuffix(".__init__")
    return f"{path}:{function}" if not function.startswith("<") else None
