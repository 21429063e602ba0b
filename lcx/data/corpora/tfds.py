"""Any text dataset of the TFDS catalogue, read from ArrayRecord without TensorFlow."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lcx.data.documents import Document, Skip, check_policy
from lcx.errors import DataError


@dataclass(frozen=True)
class Tfds:
    """A TFDS dataset by name ("pg19", "wiki40b/en", "my_dataset:1.0.0") and text feature.

    split: one TFDS split expression, or several, read one after another ("train[:1%]").
    data_dir: where TFDS keeps its datasets (its default: ~/tensorflow_datasets).
    name_feature: a feature that names the document; the default is its place in the split.
    lcx draws its own splits by content; take split="train" to leave the dataset's own test alone.
    Raises DataError, which says what to do, where dataset, network or feature is missing.
    """

    dataset: str
    feature: str = "text"
    split: str | Sequence[str] = "train"
    data_dir: str | None = None
    name_feature: str | None = None
    on_bad: str = "raise"

    PLACES = ("data_dir",)  # says where the dataset lies, not what it is

    def __post_init__(self):
        check_policy(self.on_bad)

    def documents(self) -> Iterator[Document | Skip]:
        """(split/place or name feature, bytes of the text feature), in the dataset's order."""
        builder = self._builder()
        for split in self._splits():
            source = self._source(builder, split)
            for place in range(len(source)):
                example = source[place]
                for feature in filter(None, (self.feature, self.name_feature)):
                    if feature not in example:
                        raise DataError(f"TFDS dataset '{self.dataset}' has no feature '{feature}'"
                                        f"; it has: {', '.join(sorted(example))}")
                name = f"{split}/{place}"
                if self.name_feature:
                    name = _text(example[self.name_feature], self.name_feature).decode()
                yield Document(name, _text(example[self.feature], self.feature))

    def identity(self) -> dict[str, Any] | None:
        """Full name with version, feature, and sizes of the splits: no need to read it all."""
        info = self._builder().info
        sizes = {k: [v.num_examples, v.num_bytes] for k, v in sorted(info.splits.items())}
        return {"dataset": info.full_name, "splits": sizes, "take": list(self._splits()),
                "feature": self.feature, "name_feature": self.name_feature}

    def _splits(self) -> Sequence[str]:
        return (self.split,) if isinstance(self.split, str) else tuple(self.split)

    def _builder(self):
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise DataError("corpus 'tfds' needs tensorflow-datasets: "
                            "pip install tensorflow-datasets array-record") from error
        try:
            builder = self._on_disk(tfds)
        except ValueError as error:
            raise DataError(f"'{self.dataset}' is not a TFDS name; write dataset, dataset/config "
                            "or dataset:1.0.0") from error
        if builder is not None:
            return builder
        try:
            builder = tfds.builder(self.dataset, data_dir=self.data_dir,
                                   file_format="array_record")
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the CLI's own answers
                builder.download_and_prepare()
        except ImportError as error:
            raise DataError(
                f"TFDS cannot prepare '{self.dataset}' here: Python module '{error.name}' is "
                f"missing; pip install {error.name or 'it'}, or prepare the dataset where it is "
                "installed (file_format='array_record') and pass data_dir=...") from error
        except tfds.core.registered.DatasetNotFoundError as error:
            raise DataError(
                f"TFDS knows no dataset '{self.dataset}' here; see tensorflow.org/datasets/catalog "
                "(its oldest datasets need TensorFlow to be prepared), or pass data_dir= of one "
                "that is prepared") from error
        except Exception as error:  # TFDS raises whatever its download stack raises
            raise DataError(
                f"TFDS could not load '{self.dataset}' ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no message'}); without a "
                "network, prepare it elsewhere with file_format='array_record', copy the folder "
                "and pass data_dir=..., or use corpus='stdlib' or 'files'") from error
        return builder

    def _on_disk(self, tfds):
        # Read from its files alone, in the format that they have; no builder code is run.
        name, options = tfds.core.naming.parse_builder_name_kwargs(
            self.dataset, data_dir=self.data_dir)
        try:
            return tfds.core.read_only_builder.builder_from_files(str(name), **options)
        except tfds.core.registered.DatasetNotFoundError:
            return None

    def _source(self, builder, split: str):
        splits = builder.info.splits
        sizes = ", ".join(f"{name} {splits[name].num_examples}" for name in sorted(splits))
        try:
            source = builder.as_data_source(split=split) if splits[split].num_examples else None
        except NotImplementedError as error:
            raise DataError(
                f"TFDS dataset '{self.dataset}' on this disk is not ArrayRecord, which reading "
                "without TensorFlow needs; convert it (tfds convert_format "
                "--out_file_format=array_record) or prepare it again in another data_dir"
            ) from error
        except (ValueError, KeyError) as error:
            why = f" ({str(error).splitlines()[0]})" if "[" in split and str(error) else ""
            raise DataError(f"TFDS dataset '{self.dataset}' has no split '{split}'{why}; it has "
                            f"(examples): {sizes}") from error
        if source is None:
            raise DataError(f"the split '{split}' of TFDS dataset '{self.dataset}' is empty; take "
                            f"more of it (examples: {sizes})")
        return source


def _text(value: Any, feature: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise DataError(f"the feature '{feature}' is not text but {type(value).__name__}; "
                        "name the text feature with feature=...")
    return value
