"""The TFDS corpus: a dataset already on disk is read; every missing thing is named."""

import numpy as np
import pytest

from lcx.data import load
from lcx.data.builder import write_documents
from lcx.errors import DataError


@pytest.fixture
def catalogue(tmp_path):
    """A data_dir with one ArrayRecord dataset, `lcx_text`, of two splits."""
    texts = {split: [f"{split} text {i} " * (i + 2) for i in range(n)]
             for split, n in (("train", 9), ("test", 3))}

    def documents(split):
        yield from ({"name": f"n{i}", "text": t} for i, t in enumerate(texts[split]))

    sizes = {split: [len(t) for t in found] for split, found in texts.items()}
    write_documents(tmp_path / "tfds", documents, sizes)
    return tmp_path / "tfds", texts


def attempt(tmp_path, dataset="lcx_text", **options):
    corpus = dict(name="tfds", dataset=dataset, data_dir=str(tmp_path / "tfds"), **options)
    return load(dict(corpus=corpus, train_length=8, batch_size=2), cache=tmp_path / "cache")


def read(data):
    return sorted(d.tokens.astype(np.uint8).tobytes().decode()
                  for s in data.splits for d in data.evaluation_documents(1, split=s))


def test_reads_a_dataset_on_disk(tmp_path, catalogue):
    _, texts = catalogue
    assert read(attempt(tmp_path)) == sorted(texts["train"])
    both = attempt(tmp_path, split=("train", "test"))
    assert read(both) == sorted(texts["train"] + texts["test"])
    assert len(read(attempt(tmp_path, split="train[:5]"))) == 5


def test_names_from_a_feature(tmp_path, catalogue):
    data = attempt(tmp_path, name_feature="name")
    assert sorted(n for t in data.splits.values() for n in t.names) == [f"n{i}" for i in range(9)]


def test_opening_again_does_not_read_the_source(tmp_path, catalogue, monkeypatch):
    from lcx.data.corpora.tfds import Tfds
    attempt(tmp_path)
    monkeypatch.setattr(Tfds, "documents", lambda self: 1 / 0)
    attempt(tmp_path)


@pytest.mark.parametrize("options, words", [
    (dict(dataset="no_such_dataset_at_all"), "knows no dataset 'no_such_dataset_at_all'"),
    (dict(dataset="bad name!"), "'bad name!' is not a TFDS name"),
    (dict(feature="body"), "no feature 'body'; it has: name, text"),
    (dict(split="validation"), "no split 'validation'; it has (examples): test 3, train 9"),
    (dict(split="train[:1%]"), "'train[:1%]' of TFDS dataset 'lcx_text' is empty; take more"),
    (dict(split=("train", "test[2:2]")), "'test[2:2]' of TFDS dataset 'lcx_text' is empty"),
    (dict(split="test[7:9]"), "no split 'test[7:9]' (Requested slice [7:9] incompatible with 3"),
    (dict(split="train[:1%"), "no split 'train[:1%'"),
])
def test_what_is_missing_is_named(tmp_path, catalogue, options, words):
    with pytest.raises(DataError) as caught:
        attempt(tmp_path, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_catalogue_dataset_that_cannot_be_prepared_here(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def offline(self, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(DataError, match="lm1b|tiny_shakespeare") as caught:
        attempt(tmp_path, dataset="tiny_shakespeare")
    message = str(caught.value)
    assert "\n" not in message and ("network" in message or "pip install" in message)
