"""Token files: every document of a split as one flat array of ids, with the documents' offsets."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcx.data import store
from lcx.data.prepare import Prepared
from lcx.data.survey import SPLITS
from lcx.data.tokenizers import Tokenizer
from lcx.errors import DataError


class IdFile:
    """Token ids on disk, read by position: `ids[start:stop]` -> array, in constant memory.

    Plain reads rather than a memory map: a file that shrinks under a running job then raises a
    DataError that names it, where a map would kill the process (SIGBUS). A removed file stays
    readable. Safe to read from several threads.
    """

    def __init__(self, path: Path, dtype: np.dtype, size: int):
        self._path, self._dtype, self._size = path, dtype, size
        self._file = path.open("rb", buffering=0)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, run: slice) -> np.ndarray:
        start, stop = int(run.start), int(run.stop)
        if not 0 <= start <= stop <= self._size:
            raise IndexError(f"ids {start}:{stop} of {self._size} in '{self._path}'")
        width = self._dtype.itemsize
        parts, at, end = [], start * width, stop * width
        while at < end:  # one read returns at most 2 GiB
            part = os.pread(self._file.fileno(), end - at, at)
            if not part:
                raise DataError(f"'{self._path}' was cut short while in use (no byte {at}); "
                                "start again, and it is prepared anew")
            parts.append(part)
            at += len(part)
        return np.frombuffer(b"".join(parts), self._dtype)


@dataclass(frozen=True)
class Tokens:
    """One split: `ids` [N] of all documents end to end; document d is ids[offsets[d]:offsets[d+1]].

    `num_bytes` [documents] are UTF-8 bytes, `counts` [vocab] how often each id occurs.
    """

    ids: IdFile
    offsets: np.ndarray
    num_bytes: np.ndarray
    counts: np.ndarray
    names: list[str]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per document, int64 [documents]."""
        return np.diff(self.offsets)


def tokenize(prepared: Prepared, tokenizer: Tokenizer) -> dict[str, Tokens]:
    """Find or write the token files of a prepared corpus, split by split.

    Raises DataError where a tokenizer yields an id outside its vocabulary or loses bytes.
    """
    tokenizer.ready(lambda: (text for _, text in prepared.texts("train")), prepared.folder)
    identity = json.dumps(tokenizer.identity(), sort_keys=True)
    folder = prepared.folder / f"tokens-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def write(aside: Path) -> dict[str, Any]:
        for split in SPLITS:
            _write_split(aside, split, prepared, tokenizer)
        return {"tokenizer": tokenizer.identity(), "dtype": dtype_of(tokenizer.vocab_size).name}

    dtype = dtype_of(tokenizer.vocab_size)
    need = prepared.counters["bytes"]["kept"] * dtype.itemsize
    store.ensure(folder, write, need)
    return {split: _open(folder, split, dtype) for split in SPLITS}


def dtype_of(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id of a vocabulary."""
    return np.dtype(np.min_scalar_type(vocab_size - 1))


def narrow(ids: np.ndarray, vocab_size: int, name: str) -> np.ndarray:
    """Ids in the smallest type for the vocabulary; raises DataError where a cast would wrap."""
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        bad = int(ids.max() if ids.max() >= vocab_size else ids.min())
        raise DataError(f"token id {bad} of document '{name}' is outside the vocabulary of "
                        f"{vocab_size}; tokenizer and vocabulary do not belong together")
    return ids.astype(dtype_of(vocab_size))


def _write_split(aside: Path, split: str, prepared: Prepared, tokenizer: Tokenizer) -> None:
    offsets, num_bytes, names = [0], [], []
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    token_bytes = tokenizer.token_bytes()
    with (aside / f"{split}.ids").open("wb") as file:
        for name, text in prepared.texts(split):
            ids = narrow(tokenizer.encode(text), tokenizer.vocab_size, name)
            if (covered := int(token_bytes[ids].sum())) != len(text):
                raise DataError(f"the tokens of '{name}' cover {covered} of its {len(text)} bytes; "
                                "bits per byte needs a lossless byte-level tokenizer")
            file.write(ids.tobytes())
            offsets.append(offsets[-1] + len(ids))
            num_bytes.append(len(text))
            names.append(name)
            counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    np.save(aside / f"{split}.offsets.npy", np.array(offsets, np.int64), allow_pickle=False)
    np.save(aside / f"{split}.bytes.npy", np.array(num_bytes, np.int64), allow_pickle=False)
    np.save(aside / f"{split}.counts.npy", counts, allow_pickle=False)
    (aside / f"{split}.names.json").write_text(json.dumps(names))


def _open(folder: Path, split: str, dtype: np.dtype) -> Tokens:
    offsets, num_bytes, counts = (
        np.load(folder / f"{split}.{part}.npy", allow_pickle=False)
        for part in ("offsets", "bytes", "counts"))
    names = json.loads((folder / f"{split}.names.json").read_text())
    ids = IdFile(folder / f"{split}.ids", dtype, int(offsets[-1]))
    return Tokens(ids, offsets, num_bytes, counts, names)
