"""The BPE tokenizer: trained or loaded, lossless, exact about bytes; clear without its extra."""

import json
import sys

import numpy as np
import pytest

from lcx.data import load
from lcx.errors import ConfigError, DataError


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"the café of number {i} is the café 東京 🙂\n" * (5 + i))
    return folder


def attempt(tmp_path, **options):
    return load(dict(corpus=dict(name="files", paths=str(tmp_path / "text")), train_length=16,
                     batch_size=2, tokenizer=dict(name="bpe", **options)), cache=tmp_path / "c")


def test_without_the_extra_the_error_says_what_to_install(tmp_path, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install lcx\[tokenizers\]"):
        attempt(tmp_path)
    assert not (tmp_path / "c").exists()


def test_trained_bpe_is_lossless_and_counts_bytes(tmp_path, text):
    pytest.importorskip("tokenizers")
    data = attempt(tmp_path, vocab_size=300)
    assert 256 < data.vocab_size <= 300
    for split in data.splits:
        for document in data.evaluation_documents(1, split=split):
            raw = (text / document.name.split("/")[1]).read_bytes()
            assert data.tokenizer.decode(document.tokens) == raw
            assert document.token_bytes.sum() == len(raw)
            for token, size in zip(document.tokens, document.token_bytes):
                assert len(data.tokenizer.decode([token])) == size
            assert len(document.tokens) < len(raw)
    batch = next(data.train_batches())
    assert batch["inputs"].max() < data.vocab_size
    assert data.splits["train"].ids[0:1].dtype == np.uint16


def test_training_is_done_once_and_is_deterministic(tmp_path, text):
    pytest.importorskip("tokenizers")
    first = attempt(tmp_path, vocab_size=300)
    (home,) = first.prepared.folder.glob("bpe-*")
    stamp = (home / "tokenizer.json").stat().st_mtime_ns
    again = attempt(tmp_path, vocab_size=300)
    assert (home / "tokenizer.json").stat().st_mtime_ns == stamp
    assert again.fingerprint == first.fingerprint
    assert attempt(tmp_path, vocab_size=280).fingerprint != first.fingerprint
    loaded = attempt(tmp_path, path=str(home / "tokenizer.json"))
    assert loaded.tokenizer.identity() == first.tokenizer.identity()


def test_bad_tokenizer_files(tmp_path, text):
    tokenizers = pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        attempt(tmp_path, path=str(tmp_path / "none.json"))
    (tmp_path / "torn.json").write_text(json.dumps({"model": 1})[:-1])
    with pytest.raises(DataError, match="is not a tokenizer.json"):
        attempt(tmp_path, path=str(tmp_path / "torn.json"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(DataError, match="cover .* of its .* bytes"):
        attempt(tmp_path, path=str(tmp_path / "words.json"))
    with pytest.raises(ConfigError, match="256 or more"):
        attempt(tmp_path, vocab_size=100)
