"""A TFDS builder that writes documents to ArrayRecord, in order, without TensorFlow.

TFDS's usual GeneratorBasedBuilder shuffles, and above 1 GB a split its shuffler opens TensorFlow
files. The shard-based builder does not shuffle and needs none; it holds one shard in memory, so
shards are kept small. Shuffling is the loader's work.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from lcx.errors import DataError

SHARD_BYTES = 64 << 20


class LcxText(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Documents as {"name", "text"}; made by `write_documents`, readable by TFDS alone."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = {}  # nothing is downloaded: TFDS need not look for checksums beside this file

    def __init__(self, *, documents: Callable[[str], Iterator[dict]], sizes: dict[str, list[int]],
                 **kwargs):
        self._documents, self._sizes = documents, sizes
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, description="Whole text documents, prepared by lcx.",
            features=tfds.features.FeaturesDict(
                {"name": tfds.features.Text(), "text": tfds.features.Text()}),
            disable_shuffling=True)

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        shards = {}
        for split, sizes in self._sizes.items():
            examples = enumerate(self._documents(split))  # TFDS runs the shards one after another
            shards[split] = [_take(examples, n) for n in shard_lengths(sizes)]
        return shards


def _take(examples, count: int):
    return lambda: itertools.islice(examples, count)


def shard_lengths(sizes: list[int]) -> list[int]:
    """How many documents each shard takes, for shards of about SHARD_BYTES."""
    lengths, filled = [0], 0
    for size in sizes:
        if lengths[-1] and filled + size > SHARD_BYTES:
            lengths.append(0)
            filled = 0
        lengths[-1] += 1
        filled += size
    return lengths


def write_documents(folder: Path, documents: Callable[[str], Iterator[dict]],
                    sizes: dict[str, list[int]]) -> None:
    """Write `documents(split)` for each split of `sizes` (document sizes) under `folder`.

    Raises DataError where the disk refuses.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself on stdout
            LcxText(documents=documents, sizes=sizes, data_dir=folder,
                    file_format="array_record").download_and_prepare(
                        download_dir=folder / "downloads")
    except RuntimeError as error:  # ArrayRecord's only word for a failed write
        why = (str(error).splitlines() or ["no message"])[0].split(";")[0]
        raise DataError(f"cannot write prepared data to '{folder.parent}': {why} (about "
                        f"{sum(map(sum, sizes.values()))} bytes are needed); set LCX_DATA to a "
                        "folder with space") from error


def open_documents(folder: Path):
    """split -> random-access source of {"name": bytes, "text": bytes}."""
    version = next(folder.glob("lcx_text/*/dataset_info.json")).parent
    builder = tfds.builder_from_directory(version)
    return {split: builder.as_data_source(split=split) for split in builder.info.splits}
