"""A run that was stopped, killed and resumed in fresh processes ends in the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from lcx.train import state_hash, train
from lcx.train.checkpoint import steps
from lcx.train.metrics import read
from tests.train_stand_in import Batches, StandIn, config

ROOT = Path(__file__).parents[1]


class Deadly(Batches):
    """Sends this process a signal while it fetches batch number `at`."""

    def __init__(self, config, at, number):
        super().__init__(config)
        self.at, self.number = at, number

    def __next__(self):
        batch = super().__next__()
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
        return batch


def setup():
    # Position noise and accumulation: what a step draws must not depend on where a run began.
    return config(steps=20, checkpoint_every=13, accumulate=2), StandIn(noise=0.1)


def child(folder, at, number):
    """Trains in a fresh process that gets signal `number` at batch `at`; its exit status."""
    command = [sys.executable, "-m", __name__, str(folder), str(at), str(int(number))]
    return subprocess.run(command, cwd=ROOT, env=os.environ, timeout=300,
                          capture_output=True, text=True)


def test_zero_to_twenty_equals_seven_thirteen_twenty_in_fresh_processes(tmp_path):
    stopped = child(tmp_path / "b", 7, signal.SIGTERM)
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped on request after step 7 of 20" in stopped.stderr
    assert steps(tmp_path / "b/checkpoints") == [7]
    killed = child(tmp_path / "b", 16, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {r["step"] for r in read(tmp_path / "b/metrics.jsonl")} >= set(range(1, 14))
    finished = child(tmp_path / "b", 99, signal.SIGKILL)
    assert finished.returncode == 0, finished.stderr

    run, model = setup()
    data = Batches(run)
    want = state_hash(train(run, data, tmp_path / "a", model=model), data.get_state())
    assert finished.stdout.split()[-1] == want

    def rows(name):
        return [{k: v for k, v in r.items() if k != "time"}
                for r in read(tmp_path / name / "metrics.jsonl")]

    assert rows("b") == rows("a")
    assert [r["step"] for r in rows("a")] == list(range(1, 21))
    assert len({r["batch"] for r in rows("a")}) == 20


if __name__ == "__main__":
    run, model = setup()
    data = Deadly(run, int(sys.argv[2]), int(sys.argv[3]))
    try:
        state = train(run, data, sys.argv[1], model=model)
    except SystemExit as stop:
        print(stop, file=sys.stderr)
        raise
    print(state_hash(state, data.get_state()))
