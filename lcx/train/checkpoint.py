"""Checkpoints: parameters, optimizer, data iterator and step in one atomic orbax composite.

A checkpoint is `<folder>/<step>/{params,optimizer,manifest}`. Arrays are stored by dotted path;
the manifest holds each one's shape, dtype and sha256, the data iterator's state and the tokens
seen, and its own digest; the seal holds the sha256 of every file. Restoring verifies all of it,
since orbax alone notices no flipped bit.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lcx.errors import ConfigError
from lcx.train.manifest import describe, digest, flat, hashes, unflat
from lcx.train.seal import broken, seal
from lcx.train.state import TrainState

log = logging.getLogger(__name__)
KEEP = 2  # two, so that a damaged newest one has a predecessor


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or what it holds is damaged."""


class CheckpointMismatch(ConfigError):
    """A checkpoint is sound but of another model or optimizer; every differing leaf is listed."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds beside the arrays: its step, the iterator's state, tokens seen.

    code: the versions of the code that trained it, in order.
    """

    step: int
    data: Any
    tokens: int
    code: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run, newest `keep` of them."""

    def __init__(self, folder: str | os.PathLike, keep: int = KEEP):
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep = keep
        self._writer: ocp.CheckpointManager | None = None
        self._bytes = 0
        self._unsealed: set[int] = set()

    def check_space(self, abstract: TrainState) -> None:
        """Raise CheckpointError unless the disk can hold `keep` + 1 checkpoints of this state."""
        self._bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
        needed, free = (self.keep + 1) * self._bytes, shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: checkpoints of this run need {needed:,} bytes ({self.keep + 1} x "
                f"{self._bytes:,}) but only {free:,} are free; free some or change runtime.out"
            )

    def save(self, step: int, state: TrainState, data: Any, tokens: int,
             code: Sequence[str] = ()) -> None:
        """Save asynchronously; an error of the save before surfaces here, or in `finish`."""
        self.wait()
        named = flat(state)
        leaves = describe(named)
        if jax.process_count() == 1:  # a process cannot hash what lies on other hosts
            for name, value in hashes(named).items():
                leaves[name]["sha256"] = value
        body = {"step": step, "tokens": tokens, "data": data, "leaves": leaves,
                "code": list(code)}
        params, optimizer = _split(named)
        try:
            self._open().save(step, force=True, args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                manifest=ocp.args.JsonSave({**body, "digest": digest(body)}),
            ))
        except Exception as error:
            raise self._failed(error) from error
        if jax.process_index() == 0:
            self._unsealed.add(step)

    def wait(self) -> None:
        """Wait for the save under way. Raises CheckpointError if it failed."""
        if self._writer is None:
            return
        try:
            self._writer.wait_until_finished()
            self._writer.check_for_errors()
            for step in self._unsealed & {*steps(self.folder)}:
                seal(self.folder / str(step))
        except Exception as error:
            raise self._failed(error) from error
        self._unsealed = set()

    def finish(self, step: int) -> None:
        """Wait for the last save, read it back from the disk and verify every byte of it."""
        self.wait()
        if step not in steps(self.folder):
            raise CheckpointError(f"{self.folder}: the checkpoint of step {step} is not there")
        if jax.process_count() > 1:
            return  # the bytes of one process are not the whole
        manifest = read_manifest(self.folder / str(step))
        host = {name: np.empty(leaf["shape"], jnp.dtype(leaf["dtype"]))  # not onto the devices
                for name, leaf in manifest["leaves"].items()}
        read_leaves(self.folder / str(step), manifest, host)

    def restore(self, abstract: TrainState) -> tuple[TrainState, Saved] | None:
        """The newest good checkpoint, placed by `abstract`'s shardings (of any mesh), or None.

        A damaged one is named in the log, moved to `<folder>.damaged` and passed over. Raises
        CheckpointMismatch on a sound one of another model, CheckpointError if none is good.
        """
        found = steps(self.folder)
        for step in reversed(found):
            try:
                return _restore(self.folder / str(step), abstract)
            except CheckpointError as error:
                log.error("damaged checkpoint, going back to the one before: %s", error)
                self._set_aside(step)
        if found:
            raise CheckpointError(f"{self.folder}: none of the checkpoints {found} can be read; "
                                  "delete the run folder to start again")
        return None

    def close(self) -> None:
        """Let go of the folder. After `finish` nothing can be lost; before it, an error is."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except Exception as error:  # of the save under way, while another error is raised
            log.error("%s", self._failed(error))

    def _open(self) -> ocp.CheckpointManager:
        if self._writer is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self.keep, cleanup_tmp_directories=True
            )
            self._writer = ocp.CheckpointManager(self.folder, options=options)
        return self._writer

    def _set_aside(self, step: int) -> None:
        attic = self.folder.with_name(self.folder.name + ".damaged")
        attic.mkdir(exist_ok=True)
        taken = len(list(attic.iterdir()))
        os.replace(self.folder / str(step), attic / f"{step}.{taken}")

    def _failed(self, error: Exception) -> CheckpointError:
        free = shutil.disk_usage(self.folder).free
        last = max(steps(self.folder), default=None)
        return CheckpointError(
            f"a checkpoint in {self.folder} could not be written ({type(error).__name__}: {error})"
            f"; it takes about {self._bytes:,} bytes and {free:,} are free; "
            f"the last good one is of step {last}"
        )


def steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the complete checkpoints in a folder, in order."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir()
                  if p.name.isdecimal() and p.is_dir() and not p.is_symlink())


def saved(folder: str | os.PathLike) -> Saved:
    """What the newest checkpoint holds beside the arrays. Raises CheckpointError."""
    if not (found := steps(folder)):
        raise CheckpointError(f"{folder}: there is no checkpoint; has the run trained?")
    return _saved(read_manifest(Path(folder).absolute() / str(found[-1])))


def load_params(folder: str | os.PathLike, abstract: Any, step: int | None = None) -> Any:
    """The parameters alone (by default of the newest step), verified, without the optimizer.

    `abstract` is the unboxed tree of ShapeDtypeStruct, with shardings where they should lie.
    Raises CheckpointMismatch listing every differing leaf, CheckpointError on damage.
    """
    step = max(steps(folder), default=None) if step is None else step
    if step is None:
        raise CheckpointError(f"{folder}: there is no checkpoint; has the run trained?")
    path = Path(folder).absolute() / str(step)
    manifest = read_manifest(path)
    target = flat({"params": abstract})
    kept = {n: leaf for n, leaf in manifest["leaves"].items() if n.startswith("params.")}
    compare(path, kept, target)
    return unflat(read_leaves(path, manifest, target), {"params": abstract})["params"]


def _restore(path: Path, abstract: TrainState) -> tuple[TrainState, Saved]:
    manifest = read_manifest(path)
    target = flat(abstract)
    compare(path, manifest["leaves"], target)
    named = read_leaves(path, manifest, target)
    return unflat(named, abstract), _saved(manifest)


def _saved(manifest: Mapping[str, Any]) -> Saved:
    return Saved(manifest["step"], manifest["data"], manifest["tokens"],
                 tuple(manifest.get("code", ())))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are those that were sealed."""
    if damaged := broken(path):
        raise CheckpointError(f"{path} is not as it was saved: {'; '.join(damaged)}")
    try:
        found = _reader(ocp.JsonCheckpointHandler(), path / "manifest", ocp.args.JsonRestore())
        stated = found.pop("digest")
        sound = stated == digest(found) and found["step"] == int(path.name)
    except Exception as error:
        raise CheckpointError(f"{path / 'manifest'} cannot be read: {error!r}") from error
    if not sound:
        raise CheckpointError(f"{path / 'manifest'}: its digest does not fit its content")
    return found


def compare(path: Path, kept: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Raise CheckpointMismatch listing every leaf that differs in name, shape or dtype."""
    wanted = describe(target)
    shown = lambda leaf: f"{leaf['dtype']}{leaf['shape']}"
    lines = []
    for name in sorted({*kept, *wanted}):
        if name not in kept:
            lines.append(f"  {name}: the model has {shown(wanted[name])}, the checkpoint nothing")
        elif name not in wanted:
            lines.append(f"  {name}: the checkpoint has {shown(kept[name])}, the model nothing")
        elif shown(kept[name]) != shown(wanted[name]):
            lines.append(f"  {name}: the checkpoint has {shown(kept[name])}, "
                         f"the model {shown(wanted[name])}")
    if lines:
        raise CheckpointMismatch(
            f"{path} is of another model or optimizer; {len(lines)} leaves differ (use the config "
            "beside it, or another run folder):\n" + "\n".join(lines)
        )


def read_leaves(path: Path, manifest: Mapping[str, Any],
                target: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of `target` by dotted path, verified against the manifest."""
    named: dict[str, Any] = {}
    for item, wanted in zip(("params", "optimizer"), _split(target)):
        if not wanted:  # evaluation wants the parameters alone
            continue
        try:
            args = ocp.args.StandardRestore(wanted)
            named |= _reader(ocp.StandardCheckpointHandler(), path / item, args)
        except Exception as error:
            raise CheckpointError(f"{path / item} cannot be read: {error!r}") from error
    if jax.process_count() > 1:
        return named
    for name, found in hashes(named).items():
        if found != manifest["leaves"][name].get("sha256"):
            raise CheckpointError(f"{path}: the bytes of {name} are not those that were saved")
    return named


def _split(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters, which evaluation reads alone, and the rest."""
    params = {n: x for n, x in named.items() if n.startswith("params.")}
    return params, {n: x for n, x in named.items() if n not in params}


def _reader(handler: Any, path: Path, args: Any) -> Any:
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(path, args=args)
