"""Bad input and broken disks: one clear line each, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcx.data import load, store
from lcx.data.tokens import narrow
from lcx.errors import ConfigError, DataError


def files(tmp_path, **options):
    return dict(name="files", paths=str(tmp_path / "text")) | options


def attempt(tmp_path, corpus=None, **settings):
    spec = dict(corpus=corpus or files(tmp_path), train_length=8, batch_size=2) | settings
    return load(spec, cache=tmp_path / "cache")


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"document number {i} " * (i + 3))
    return folder


def nothing_written(tmp_path):
    cache = tmp_path / "cache"
    return not [p for p in cache.rglob("*") if p.is_file() or p.suffix == ".partial"]


def fail(tmp_path, *words, error=DataError, **arguments):
    with pytest.raises(error) as caught:
        attempt(tmp_path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert nothing_written(tmp_path)


def test_missing_path(tmp_path):
    fail(tmp_path, "no such file or folder", "text", "check paths")


def test_glob_without_match(tmp_path, text):
    fail(tmp_path, "matches no file", "*.nope", corpus=files(tmp_path, paths=f"{text}/*.nope"))


def test_empty_folder(tmp_path):
    (tmp_path / "text").mkdir()
    fail(tmp_path, "holds no file", "patterns")


def test_pattern_without_match(tmp_path, text):
    fail(tmp_path, "holds no file", "*.md", corpus=files(tmp_path, patterns="*.md"))


def test_no_paths(tmp_path):
    fail(tmp_path, "at least one path", corpus=files(tmp_path, paths=()))


def test_only_empty_files(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"")
    (tmp_path / "text" / "b.txt").write_bytes(b"\xef\xbb\xbf")
    fail(tmp_path, "holds no text", "2 no bytes")


@pytest.mark.parametrize("content, why", [(b"a\0b", "NUL"), (b"caf\xe9!", "not UTF-8"),
                                          ("wide".encode("utf-16"), "N")])
def test_binary_file(tmp_path, text, content, why):
    (text / "picture.png").write_bytes(content)
    fail(tmp_path, "picture.png", why, "on_bad='skip'")
    assert attempt(tmp_path, files(tmp_path, on_bad="skip")).prepared.counters[
        "documents"]["kept"] == 6


def test_fifo(tmp_path, text):
    os.mkfifo(text / "pipe")
    fail(tmp_path, "not a regular file", "pipe", corpus=files(tmp_path, paths=str(text / "pipe")))
    counters = attempt(tmp_path).prepared.counters
    assert counters["documents"]["skipped"] == {"not_a_file": 1}


def test_huge_sparse_file_is_never_read(tmp_path, text):
    with (text / "sparse.txt").open("wb") as file:
        file.truncate(1 << 40)
    fail(tmp_path, "sparse.txt", "larger than max_bytes", str(1 << 40))
    skipped = attempt(tmp_path, files(tmp_path, on_bad="skip")).prepared.counters["bytes"]
    assert skipped["skipped"]["too_large"] == 1 << 40
    assert skipped["read"] == skipped["kept"] + (1 << 40)


def test_a_part_without_end_is_bounded(tmp_path, text):
    (text / "long.txt").write_text("short<s>" + "x" * (3 << 20))
    corpus = files(tmp_path, separator="<s>", max_bytes=1 << 20, on_bad="skip")
    counters = attempt(tmp_path, corpus).prepared.counters
    assert counters["documents"]["skipped"] == {"too_large": 1}
    assert counters["bytes"]["read"] == sum(p.stat().st_size for p in text.iterdir())


def test_a_separator_that_never_occurs(tmp_path, text):
    for separator in ("\\n\\n", "\r\n", "<nowhere>"):
        fail(tmp_path, f"separator {separator!r} is in none of the files", "separator=None",
             corpus=files(tmp_path, separator=separator))
    (text / "one.txt").write_text("one of many<nowhere>has it")
    assert attempt(tmp_path, files(tmp_path, separator="<nowhere>"))


def test_one_byte(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"a")
    for packing, words in [("contiguous", "longer than the whole training split (1 tokens)"),
                           ("within_documents", "longer than every training document"),
                           ("first_fit", "nothing to predict")]:
        with pytest.raises(DataError, match=".*") as caught:
            attempt(tmp_path, packing=packing)
        assert words in str(caught.value)


def test_train_length_longer_than_every_document(tmp_path, text):
    with pytest.raises(DataError, match="longer than every training document.*first_fit"):
        attempt(tmp_path, packing="within_documents", train_length=1000)
    with pytest.raises(DataError, match="longer than the whole training split"):
        attempt(tmp_path, train_length=100_000)


def test_no_document_reaches_an_evaluation_length(tmp_path, text):
    data = attempt(tmp_path)
    with pytest.raises(DataError, match="no document of the validation split has 5000 tokens"):
        data.evaluation_documents(5000)
    with pytest.raises(ConfigError, match="did you mean 'validation'"):
        data.evaluation_documents(1, split="validaton")


def test_empty_split_says_what_to_do(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the only document " * 9)
    data = attempt(tmp_path)
    for use in (lambda: data.evaluation_documents(1), data.unigram_bits_per_byte):
        with pytest.raises(DataError, match="validation split is empty.*separator"):
            use()


@pytest.mark.parametrize("change, words", [
    (dict(trian_length=8), "did you mean 'train_length'"),
    (dict(corpus="stdlb"), "did you mean 'stdlib'"),
    (dict(tokenizer="byte"), "did you mean 'bytes'"),
    (dict(packing="firstfit"), "did you mean 'first_fit'"),
    (dict(corpus=dict(name="files", path="x")), "did you mean 'paths'"),
    (dict(corpus=dict(name="files", paths="x", on_bad="ignore")), "'raise' or 'skip'"),
    (dict(train_length=0), "must be int, 1 or more"),
    (dict(train_length=8.0), "must be int, 1 or more"),
    (dict(batch_size=True), "must be int, 1 or more"),
    (dict(validation=0.9, test=0.1), "leave something to train on"),
])
def test_config_errors(tmp_path, text, change, words):
    fail(tmp_path, words, error=ConfigError, **change)


def test_uneven_processes(tmp_path, text):
    spec = dict(corpus=files(tmp_path), train_length=8, batch_size=3)
    with pytest.raises(ConfigError, match="multiple of the 2 processes"):
        load(spec, cache=tmp_path / "cache", process_count=2)
    with pytest.raises(ConfigError, match="process_index=2"):
        load(spec | dict(batch_size=4), cache=tmp_path / "cache", process_index=2, process_count=2)


def test_epochs_that_fill_no_batch(tmp_path, text):
    with pytest.raises(DataError, match="do not fill one batch"):
        attempt(tmp_path, batch_size=10_000, epochs=1).train_batches()


def test_state_of_other_data_is_refused(tmp_path, text):
    state = attempt(tmp_path).train_batches().get_state()
    attempt(tmp_path).train_batches().set_state(state)
    for change in (dict(train_length=9), dict(batch_size=4), dict(packing="first_fit")):
        with pytest.raises(DataError, match="belongs to other data"):
            attempt(tmp_path, **change).train_batches().set_state(state)
    for step in (-1, "3", None):
        with pytest.raises(DataError, match="damaged"):
            attempt(tmp_path).train_batches().set_state(state | {"step": step})
    (text / "0.txt").write_text("changed")
    with pytest.raises(DataError, match="belongs to other data"):
        attempt(tmp_path).train_batches().set_state(state)


def test_a_changed_source_is_prepared_again(tmp_path, text):
    first = attempt(tmp_path)
    assert attempt(tmp_path).content_hash == first.content_hash
    (text / "0.txt").write_text("document number 9 " * 3)  # as many bytes as before
    second = attempt(tmp_path)
    assert second.content_hash != first.content_hash
    assert second.prepared.folder != first.prepared.folder
    assert attempt(tmp_path, validation=0.2).content_hash != second.content_hash


def token_folder(data):
    return next(data.prepared.folder.glob("tokens-*"))


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", ["train.ids", "train.offsets.npy", "manifest.json",
                                   "array_record"])
def test_a_damaged_preparation_is_never_used(tmp_path, text, caplog, damage, which):
    data = attempt(tmp_path)
    before = next(data.train_batches())
    if which == "array_record":
        path = next(data.prepared.folder.rglob("*train.array_record*"))
    else:
        path = token_folder(data) / which
    del data
    damage(path)
    after = next(attempt(tmp_path).train_batches())
    np.testing.assert_array_equal(before["inputs"], after["inputs"])
    if not (which == "manifest.json" and damage is flip):  # a flip may leave valid JSON
        assert "prepared again" in caplog.text and path.name in caplog.text


def test_token_files_that_shrink_under_a_run_raise(tmp_path, text):
    data = attempt(tmp_path)
    os.truncate(token_folder(data) / "train.ids", 3)
    with pytest.raises(DataError, match="train.ids' was cut short") as caught:
        for _ in range(100):
            next(data.train_batches())
    assert "\n" not in str(caught.value)


def test_killed_in_the_middle_leaves_nothing_that_is_used(tmp_path, text):
    program = f"""
import os
from lcx.data import builder, load
write = builder.write_documents
def torn(folder, documents, sizes):
    write(folder, documents, sizes)
    os.kill(os.getpid(), 9)
builder.write_documents = torn
load({dict(corpus=files(tmp_path), train_length=8)!r}, cache={str(tmp_path / "cache")!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    cache = tmp_path / "cache"
    assert list(cache.rglob("*.partial")) and not list(cache.rglob("manifest.json"))
    assert attempt(tmp_path).prepared.counters["documents"]["kept"] == 6
    assert not list(cache.rglob("*.partial"))


def test_two_processes_may_prepare_at_once(tmp_path):
    folder = tmp_path / "made"

    def write(aside, first=True):
        if first:  # the other process is quicker
            store.ensure(folder, lambda other: write(other, False))
        (aside / "file").write_text("content")
        return {"first": first}

    assert store.ensure(folder, write) == {"first": False}
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_source_that_changes_while_it_is_read(tmp_path, text, monkeypatch):
    from lcx.data.corpora.files import Files
    honest, calls = Files.documents, []

    def changing(self):
        calls.append(1)
        if len(calls) == 2:
            (text / "3.txt").write_text("someone writes here")
        return honest(self)

    monkeypatch.setattr(Files, "documents", changing)
    fail(tmp_path, "changed while the corpus was read")


def test_read_only_cache(tmp_path, text, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match="cannot write prepared data.*LCX_DATA"):
        attempt(tmp_path)


def test_full_disk_is_noticed_before_writing(tmp_path, text, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    fail(tmp_path, "10 bytes free", "LCX_DATA")


@pytest.mark.parametrize("limit", [300, 3_000])
def test_a_disk_that_fills_up_in_the_middle(tmp_path, text, limit):
    (text / "more.txt").write_text("".join(f"word {i} " for i in range(1000)))
    program = f"""
import resource, signal
from lcx.data import load
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
load({dict(corpus=files(tmp_path), train_length=8)!r}, cache={str(tmp_path / "cache")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "lcx.errors.DataError: cannot write prepared data to" in done.stderr, done.stderr
    assert "File too large" in done.stderr and "bytes are needed" in done.stderr
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert attempt(tmp_path).prepared.counters["documents"]["kept"] == 7


def test_cache_folder_of_the_environment(tmp_path, text, monkeypatch):
    monkeypatch.setenv("LCX_DATA", str(tmp_path / "elsewhere"))
    data = load(dict(corpus=files(tmp_path), train_length=8))
    assert data.prepared.folder.is_relative_to(tmp_path / "elsewhere")


def test_ids_never_wrap(tmp_path, text):
    assert narrow(np.array([0, 255]), 256, "x").dtype == np.uint8
    assert narrow(np.array([0, 69999]), 70_000, "x").dtype == np.uint32
    for ids, vocab in (([256], 256), ([-1], 256), ([70_000], 65_536)):
        with pytest.raises(DataError, match="outside the vocabulary"):
            narrow(np.array(ids), vocab, "x")
    data = attempt(tmp_path)
    data.require_vocab(256)
    with pytest.raises(ConfigError, match="model.vocab_size=255"):
        data.require_vocab(255)


def test_preparation_needs_no_tensorflow(tmp_path, text):
    program = f"""
import sys
from lcx.data import load
data = load({dict(corpus=files(tmp_path), train_length=8)!r}, cache={str(tmp_path / "cache")!r})
print(next(data.train_batches())["inputs"].shape, "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "(32, 8) False", done.stderr


def test_prepared_folder_is_a_tfds_dataset(tmp_path, text):
    import tensorflow_datasets as tfds
    data = attempt(tmp_path)
    version = next(data.prepared.folder.rglob("dataset_info.json")).parent
    builder = tfds.builder_from_directory(version)
    names = [e["name"].decode() for s in builder.info.splits
             for e in builder.as_data_source(split=s)]
    assert sorted(names) == [f"text/{i}.txt" for i in range(6)]
    assert json.loads((version / "dataset_info.json").read_text())["fileFormat"] == "array_record"
