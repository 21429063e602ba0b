"""Data, through `lcx.data.load`: batches, resume, splits, counters, packings, evaluation."""

import json
import math
import time

import numpy as np
import pytest

from lcx.data import batches, load
from lcx.data.packings.first_fit import first_fit
from lcx.errors import DataError


def write_corpus(folder, lengths, seed=0):
    """One file per length in bytes; returns file name -> text."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for i, n in enumerate(lengths):
        letters = "".join(rng.choice(list("abcdefgh \n"), n))
        texts[f"d{i:03}.txt"] = ("é" + letters[2:] if n > 1 else letters).encode()
        (folder / f"d{i:03}.txt").write_bytes(texts[f"d{i:03}.txt"])
    return texts


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "text", [3, 700, 40, 1, 260, 90, 17, 500, 33, 64, 65, 129] * 4)


def open_data(tmp_path, packing="contiguous", corpus=None, seed=0, process=(0, 1), **settings):
    spec = dict(corpus=corpus or dict(name="files", paths=str(tmp_path / "text")), packing=packing,
                train_length=32, batch_size=4, **settings)
    return load(spec, seed=seed, cache=tmp_path / "cache", process_index=process[0],
                process_count=process[1])


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


PACKINGS = ["contiguous", dict(name="contiguous", segments=True), "within_documents", "first_fit"]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_resume_is_exact(tmp_path, corpus, packing):
    whole = take(open_data(tmp_path, packing).train_batches(), 40)
    parts, state = [], None
    for count in (7, 13, 20):
        batches = open_data(tmp_path, packing).train_batches()
        if state is not None:
            batches.set_state(json.loads(json.dumps(state)))
        parts += take(batches, count)
        state = batches.get_state()
    assert state["step"] == 40
    assert_same(parts, whole)
    assert any(np.any(a["inputs"] != b["inputs"]) for a, b in zip(whole, whole[1:]))


def test_rewinding_a_running_iterator_is_exact(tmp_path, corpus):
    batches = open_data(tmp_path).train_batches()
    take(batches, 3)
    state = batches.get_state()
    first = take(batches, 5)
    batches.set_state(state)
    assert_same(take(batches, 5), first)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_processes_share_out_the_global_batch(tmp_path, corpus, packing):
    whole = take(open_data(tmp_path, packing).train_batches(), 6)
    shares = []
    for process in range(2):
        batches = open_data(tmp_path, packing, process=(process, 2)).train_batches()
        batches.set_state(open_data(tmp_path, packing).train_batches().get_state())
        shares.append(take(batches, 6))
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*shares)]
    assert_same(joined, whole)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_an_epoch_holds_every_row_once_in_its_own_order(tmp_path, corpus, packing):
    data = open_data(tmp_path, packing, epochs=3)
    batches, rows = data.train_batches(), len(data.plan)
    total = 3 * rows // 4
    order = [row for step in range(total) for row in batches.rows(step)]
    epochs = [[r % rows for r in order[e * rows:(e + 1) * rows]] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(rows))
    assert epochs[0] != epochs[1] != list(range(rows))
    assert len(list(batches)) == total
    other = open_data(tmp_path, packing, seed=1).train_batches()
    first_of_other = [r for s in range(rows // 4) for r in other.rows(s)]
    assert first_of_other != epochs[1][:len(first_of_other)]  # seed + epoch would collide here


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_few_rows_are_shuffled_quickly_and_by_no_sum_of_seed_and_epoch(tmp_path, rows):
    """An overfit test: at 2 rows grain's shuffle takes 40 ms for each row of a batch."""
    write_corpus(tmp_path / "text", [32 * rows + 1])
    orders = []
    for seed in range(4):
        spec = dict(corpus=dict(name="files", paths=str(tmp_path / "text")), train_length=32,
                    batch_size=rows, validation=0.0, test=0.0)
        batches = load(spec, seed=seed, cache=tmp_path / "cache").train_batches()
        began = time.monotonic()
        epochs = [tuple(batches.rows(step)) for step in range(100 // rows)]
        take(batches, 100 // rows)
        assert time.monotonic() - began < 2
        assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(range(rows))}
        orders += epochs
    assert len(set(orders)) == {1: 1, 2: 2, 50: len(orders)}[rows]


def test_the_order_of_few_rows_is_for_good():
    assert [batches._shuffled(6, 0, 2)[at] for at in range(12)] == [
        3, 1, 4, 5, 2, 0, 1, 3, 2, 0, 5, 4]


def test_a_state_of_the_old_order_is_refused(tmp_path, corpus, monkeypatch):
    """Runs over few rows that began before NumPy shuffled them; large sets go on as they were."""
    data = open_data(tmp_path)
    new, threshold = data.fingerprint, len(data.plan)
    monkeypatch.setattr(batches, "SMALL", threshold - 1)
    old = data.train_batches().get_state()
    assert data.fingerprint == old["data"] != new
    monkeypatch.setattr(batches, "SMALL", threshold)
    with pytest.raises(DataError, match="earlier version of lcx"):
        data.train_batches().set_state(old)


def stored(data, corpus):
    """The training documents in order, from the source files themselves."""
    names = data.splits["train"].names
    return [np.frombuffer(corpus[n.split("/")[1]], np.uint8) for n in names]


def every_row(data):
    """All rows of one epoch, in plan order, each a dict of [T] arrays."""
    batches = data.train_batches()
    rows = {}
    for step in range(-(-len(data.plan) // 4)):
        batch = next(batches)
        for i, row in enumerate(batches.rows(step)):
            rows[row] = {key: value[i] for key, value in batch.items()}
    return [rows[r] for r in range(len(data.plan))]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_scored_pairs_are_exactly_those_inside_documents(tmp_path, corpus, packing):
    data = open_data(tmp_path, packing)
    documents = stored(data, corpus)
    found = [[] for _ in documents]
    for row in every_row(data):
        assert row["inputs"].dtype == row["targets"].dtype == row["document"].dtype == np.int32
        assert row["weights"].dtype == row["ids"].dtype == np.float32
        assert row["ids"].shape == (32, 1)
        for t in np.flatnonzero(row["weights"]):
            found[row["document"][t]].append((int(row["inputs"][t]), int(row["targets"][t])))
    left_out = data.plan.describe()["left_out"]
    missing = 0
    for document, pairs in zip(documents, found):
        inside = list(zip(document[:-1].tolist(), document[1:].tolist()))
        if pairs == inside:
            continue
        # first_fit may place the pieces of a document out of order; others lose only a tail.
        if packing == "first_fit":
            assert sorted(pairs) == sorted(inside)
        else:
            assert pairs == inside[:len(pairs)]
            missing += len(inside) - len(pairs)
    assert missing == left_out
    assert (left_out > 0) == (packing == "within_documents") or left_out < 32


def naive_first_fit(lengths, capacity):
    rows = []
    out = []
    for length in lengths:
        fitting = [i for i, room in enumerate(rows) if room >= length]
        if not fitting:
            rows.append(capacity)
            fitting = [len(rows) - 1]
        rows[fitting[0]] -= length
        out.append(fitting[0])
    return out


def test_first_fit_against_the_naive_loop():
    rng = np.random.default_rng(1)
    for size in (1, 2, 3, 50, 400):
        lengths = rng.integers(1, 33, size)
        assert first_fit(lengths, 32).tolist() == naive_first_fit(lengths, 32)


def test_first_fit_rows_are_documents_side_by_side(tmp_path, corpus):
    data = open_data(tmp_path, "first_fit")
    documents = stored(data, corpus)
    sizes = set()
    for row in every_row(data):
        segment, filled = row["segment"], row["segment"] > 0
        assert not np.any(np.diff(filled.astype(int)) > 0)  # padding is at the end
        np.testing.assert_array_equal(row["weights"], filled)
        np.testing.assert_array_equal(row["document"] >= 0, filled)
        assert set(segment[filled]) == set(range(1, segment.max() + 1))
        for number in range(1, segment.max() + 1):
            here = segment == number
            np.testing.assert_array_equal(row["ids"][here, 0], np.arange(here.sum()))
            (owner,) = np.unique(row["document"][here])
            run = np.append(row["inputs"][here], row["targets"][here][-1])
            np.testing.assert_array_equal(run[1:], row["targets"][here])
            assert run.astype(np.uint8).tobytes() in documents[owner].tobytes()
            sizes.add(int(here.sum()))
    assert 32 in sizes and min(sizes) < 32


def test_segments_of_contiguous_windows_restart_with_the_document(tmp_path, corpus):
    data = open_data(tmp_path, dict(name="contiguous", segments=True))
    crossed = 0
    for batch in take(data.train_batches(), 20):
        for row in range(4):
            owner, segment = batch["document"][row], batch["segment"][row]
            change = np.flatnonzero(np.diff(owner)) + 1
            crossed += len(change)
            np.testing.assert_array_equal(np.flatnonzero(np.diff(segment)) + 1, change)
            assert segment[0] == 1
            place = np.concatenate([np.arange(len(p)) for p in np.split(owner, change)])
            np.testing.assert_array_equal(batch["ids"][row, :, 0], place)
    assert crossed
    assert "segment" not in next(open_data(tmp_path).train_batches())


def test_splits_are_disjoint_stable_and_complete(tmp_path, corpus):
    data = open_data(tmp_path, validation=0.3, test=0.2)
    by_split = {s: {d.name: d.tokens.astype(np.uint8).tobytes()
                    for d in data.evaluation_documents(1, split=s)} for s in data.splits}
    texts = [set(v.values()) for v in by_split.values()]
    assert sum(map(len, texts)) == len(set.union(*texts)) == len(set(corpus.values()))
    assert all(len(t) > 3 for t in texts)
    for found in by_split.values():
        for name, text in found.items():
            assert corpus[name.split("/")[1]] == text
    # A document that joins moves no other one.
    (tmp_path / "text" / "zzz.txt").write_text("one more document of its own")
    again = open_data(tmp_path, validation=0.3, test=0.2)
    for split, found in by_split.items():
        now = {d.name for d in again.evaluation_documents(1, split=split)}
        assert set(found) <= now and len(now - set(found)) <= 1


def test_equal_texts_never_straddle_splits(tmp_path):
    for copy in range(3):
        write_corpus(tmp_path / "text" / str(copy), range(20, 60), seed=5)
    kept = open_data(tmp_path, validation=0.3, test=0.2, deduplicate=False)
    assert kept.prepared.counters["documents"]["kept"] == 120
    texts = [{d.tokens.tobytes() for d in kept.evaluation_documents(1, split=s)}
             for s in kept.splits]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    dropped = open_data(tmp_path, validation=0.3, test=0.2)
    assert dropped.prepared.counters["documents"]["skipped"] == {"duplicate": 80}


@pytest.mark.parametrize("count, expected", [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1))])
def test_a_small_corpus_still_has_its_splits(tmp_path, count, expected):
    write_corpus(tmp_path / "text", [200 + i for i in range(count)])
    data = open_data(tmp_path)
    assert tuple(len(t.lengths) for t in data.splits.values()) == expected


def test_counters_reconcile_with_the_input(tmp_path, corpus):
    text = tmp_path / "text"
    (text / "bom.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    (text / "nul.txt").write_bytes(b"a\0b")
    (text / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (text / "empty.txt").write_bytes(b"")
    (text / "copy.txt").write_bytes(corpus["d001.txt"])
    data = open_data(tmp_path, corpus=dict(name="files", paths=str(text), on_bad="skip"))
    on_disk = sum(p.stat().st_size for p in text.iterdir())
    counters = data.prepared.counters
    documents, sizes = counters["documents"], counters["bytes"]
    assert documents["read"] == len(list(text.iterdir()))
    assert documents["read"] == documents["kept"] + sum(documents["skipped"].values())
    assert sizes["read"] == on_disk
    assert sizes["read"] == sizes["kept"] + sizes["removed"] + sum(sizes["skipped"].values())
    assert {"binary", "not_utf8", "empty", "duplicate"} <= set(documents["skipped"])
    assert documents["skipped"]["binary"] == documents["skipped"]["not_utf8"] == 1
    assert sizes["removed"] == 3
    assert sum(s["bytes"] for s in counters["splits"].values()) == sizes["kept"]
    assert sum(int(t.num_bytes.sum()) for t in data.splits.values()) == sizes["kept"]
    assert json.loads(json.dumps(data.describe()))["counters"] == counters


def test_a_separator_cuts_one_file_into_documents(tmp_path):
    parts = [f"document {i}\n" * (i + 1) for i in range(30)]
    (tmp_path / "one.txt").write_text("<end>".join(parts))
    data = open_data(tmp_path, corpus=dict(name="files", paths=str(tmp_path / "one.txt"),
                                           separator="<end>"))
    found = {d.tokens.astype(np.uint8).tobytes().decode()
             for s in data.splits for d in data.evaluation_documents(1, split=s)}
    assert found == set(parts)
    sizes = data.prepared.counters["bytes"]
    assert sizes["read"] == (tmp_path / "one.txt").stat().st_size
    assert sizes["removed"] == 29 * len("<end>")


def test_evaluation_documents_are_long_chosen_by_seed_and_know_their_bytes(tmp_path, corpus):
    data = open_data(tmp_path, validation=0.5)
    reach = int(np.sort(data.splits["validation"].lengths)[-12])  # a length that one has exactly
    every = data.evaluation_documents(reach)
    assert all(len(d.tokens) >= reach and d.token_bytes.sum() == len(d.tokens) for d in every)
    assert [d.index for d in every] == sorted(d.index for d in every)
    lengths = data.splits["validation"].lengths
    assert len(every) == (lengths >= reach).sum() >= 12
    some = [d.name for d in data.evaluation_documents(reach, limit=4)]
    assert some == [d.name for d in data.evaluation_documents(reach, limit=4)]
    assert len(some) == 4 and set(some) < {d.name for d in every}
    assert any(some != [d.name for d in data.evaluation_documents(reach, limit=4, seed=s)]
               for s in (1, 2, 3))


def test_unigram_baseline_is_the_cross_entropy_of_counts(tmp_path, corpus):
    data = open_data(tmp_path, validation=0.3)
    train = b"".join(d.tobytes() for d in stored(data, corpus))
    held = [d.tokens for d in data.evaluation_documents(1)]
    bits = 0.0
    for token in np.concatenate(held):
        bits -= math.log2((train.count(bytes([token])) + 1) / (len(train) + 256))
    assert data.unigram_bits_per_byte() == pytest.approx(bits / sum(map(len, held)), rel=1e-9)


def test_stdlib_is_there_and_quick_to_open_again(tmp_path):
    spec = dict(train_length=256, batch_size=8)
    data = load(spec, cache=tmp_path)
    described = data.describe()
    names = data.splits["train"].names + data.splits["validation"].names
    assert described["counters"]["documents"]["kept"] > 300
    assert described["splits"]["validation"]["documents_at_least"][2048] >= 20
    assert not [n for n in names if "site-packages" in n or "/test/" in n]
    assert 3 < data.unigram_bits_per_byte() < 6
    assert f"{described['counters']['documents']['kept']} documents" in data.summary()
    assert f"{len(data.plan)} rows of 256" in data.summary()
    again = load(spec, cache=tmp_path)
    assert again.content_hash == data.content_hash
    assert_same(take(again.train_batches(), 2), take(data.train_batches(), 2))
