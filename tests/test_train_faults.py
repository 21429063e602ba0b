"""A hundred flipped bits in checkpoints; a disk that fills up while a run saves."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import pytest

from lcx import sharding
from lcx.train import Checkpoints, build_program, seal, state_hash, train
from lcx.train.checkpoint import steps
from tests.test_sweep_killed import CONFIG
from tests.train_stand_in import Batches, StandIn, config

ROOT = Path(__file__).parents[1]
FLIPS = 100


@pytest.mark.full
def test_no_flipped_bit_is_restored_silently(tmp_path, caplog):
    """Wherever in the newest checkpoint: the file is named, the checkpoint before is used.

    Every fourth has lost its seal, as one that was killed right after the save: then what is
    restored is still what was saved, of this step or of the one before.
    """
    c = config(steps=6, checkpoint_every=2)
    train(c, Batches(c), tmp_path / "run", model=StandIn())
    mesh = sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        abstract = build_program(c, StandIn(), mesh).abstract
    whole = {}
    for last in (6, 4):
        folder = shutil.copytree(tmp_path / "run/checkpoints", tmp_path / f"until{last}")
        if last == 4:
            shutil.rmtree(folder / "6")
        restored, saved = Checkpoints(folder).restore(abstract)
        whole[last] = state_hash(restored, saved.data)
    draw, found = random.Random(0), Counter()
    for number in range(FLIPS):
        folder = shutil.copytree(tmp_path / "run/checkpoints", tmp_path / str(number))
        files = sorted(f for f in (folder / "6").rglob("*") if f.stat().st_size and f.is_file())
        # Half of the flips by size, as a bad disk would; half in any file, for the small ones.
        weights = [f.stat().st_size if number % 2 else 1 for f in files]
        file = draw.choices([f for f in files], weights)[0]
        content = bytearray(file.read_bytes())
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        if unsealed := number % 4 == 0:
            (folder / "6" / seal.NAME).unlink(missing_ok=True)
        caplog.clear()
        restored, saved = Checkpoints(folder).restore(abstract)
        assert state_hash(restored, saved.data) == whole[saved.step], f"silent: {file}, bit {bit}"
        if saved.step == 4:
            assert f"{folder.name}/6" in caplog.text
            assert (folder.parent / f"{number}.damaged/6.0").is_dir()
        assert unsealed or (saved.step == 4 and file.name in caplog.text)
        found[saved.step, "without seal" if unsealed else "named"] += 1
        shutil.rmtree(folder)
    print(dict(found))
    assert sum(found.values()) == FLIPS


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)],
                          capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.full
@pytest.mark.parametrize("log_every", [1, 10_000])  # the row or the checkpoint meets the end first
def test_a_full_disk_ends_the_run_loudly_with_the_last_good_step_intact(
        small_disk, tmp_path, log_every):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(10):
        (text / f"{n}.txt").write_text(f"the number {n} is not the number {n + 1}. " * 8)
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG.format(text=text, out=small_disk / "runs"))
    command = [sys.executable, "-m", "lcx", "train", str(file), "--no-eval",
               f"--config.runtime.data_cache={tmp_path}/cache", "--config.runtime.compile_cache=",
               "--config.experiment.train.steps=5000", f"--config.runtime.log_every={log_every}",
               "--config.experiment.model.width=64", "--config.runtime.checkpoint_every=5"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    run = lambda: subprocess.Popen(command, cwd=ROOT, env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = run()
    found = lambda: [n for p in small_disk.glob("runs/tiny/*/checkpoints") for n in steps(p)]
    while not found() and process.poll() is None:
        time.sleep(0.01)
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    while process.poll() is None:
        with contextlib.suppress(OSError):
            os.write(filler, bytes(4096))
    os.close(filler)
    said = process.communicate()[1]
    assert process.returncode == 1 or (log_every == 1 and process.returncode == 2), said
    told = [line for line in said.splitlines() if line.startswith("lcx: error: ")]
    print(told, said.splitlines()[-1])
    assert len(told) == 1 and str(small_disk) in told[0] and "bytes" in told[0], said
    checkpoints = next(small_disk.glob("runs/tiny/*/checkpoints"))
    good = steps(checkpoints)[-1]
    (small_disk / "filler").unlink()
    process = run()  # goes on from there
    while steps(checkpoints)[-1] <= good and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    said = process.communicate()[1]
    assert process.returncode == 75 and "damaged" not in said, said
