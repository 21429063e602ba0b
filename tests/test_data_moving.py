"""Text that a scheme moves for training: PoSE and CREAM, alone and through the data pipeline."""

import json

import jax
import numpy as np
import pytest

from lcx import data, positions
from lcx.data import load
from lcx.errors import ConfigError, DataError
from lcx.model import build_model
from lcx.positions.cream import Pieces
from lcx.positions.pose import Skip
from lcx.train import sequence_of
from tests.positions.speaking import site
from tests.test_data import PACKINGS, assert_same, take

LENGTH = 32


def letters(document, length):
    """A text that says where it is: each byte follows the one before by 7, in 90."""
    return bytes((33 + (np.arange(length) * 7 + document * 13) % 90).tolist())


@pytest.fixture
def source(tmp_path):
    (tmp_path / "text").mkdir()
    for i, n in enumerate([700, 40, 260, 90, 17, 500, 64, 65, 129] * 4):
        (tmp_path / "text" / f"d{i:03}.txt").write_bytes(letters(i, n))

    def open_data(packing, process=(0, 1), **settings):
        spec = dict(corpus=dict(name="files", paths=str(tmp_path / "text")), packing=packing,
                    train_length=LENGTH, batch_size=4, deduplicate=False, **settings)
        return load(spec, cache=tmp_path / "cache", process_index=process[0],
                    process_count=process[1])
    return open_data


def many(transform, length, available, count=3000):
    draws = [transform(np.random.default_rng(n), length, available) for n in range(count)]
    return np.stack([d[0] for d in draws]), np.stack([d[1] for d in draws])


def test_pose_takes_its_second_chunk_from_a_later_place():
    for available, latest in ((50, 50), (1000, 60), (20, 20)):
        where, ids = many(Skip(64, 3), 20, available)
        jump, skip = where - np.arange(20), ids - np.arange(20)
        cut = (np.diff(jump, axis=1) > 0).argmax(1) + 1
        moved = jump[:, -1] > 0
        assert (jump[:, 0] == 0).all() and (np.diff(jump, axis=1) >= 0).all()
        assert ((np.diff(jump, axis=1) > 0).sum(1) <= 1).all()  # two chunks
        assert jump[:, -1].min() == 0 and where.max() == latest - 1
        assert skip[:, -1].min() == 0 and ids.max() == 63 and (skip[:, 0] == 0).all()
        both = moved & (skip[:, -1] > 0)
        np.testing.assert_array_equal((np.diff(skip, axis=1) > 0).argmax(1)[both] + 1, cut[both])
        if moved.any():
            assert set(cut[moved]) == set(range(1, 11))
            apart = np.corrcoef(jump[:, -1], skip[:, -1])[0, 1]
            assert abs(apart) < 0.06  # the text's jump says nothing of the ids'


def test_cream_has_a_head_a_middle_and_a_tail():
    length, factor = 96, 8
    where, ids = many(Pieces(length, factor, 9.0, 3.0), length, 10_000)
    np.testing.assert_array_equal(where, ids)  # a text long enough is read at its ids
    assert (ids[:, 0] == 0).all() and (ids[:, -1] == factor * length - 1).all()
    step = np.diff(ids, axis=1)
    assert (step[:, :31] == 1).all() and (step[:, 64:] == 1).all() and (step >= 1 - 96).all()
    assert (ids[:, 64] == factor * length - 32).all()  # 32 = 96 // 3 = 4 x 8: both cases agree
    ends = ids[:, 63]  # of the middle
    assert ends.min() >= 32 + 31 and ends.max() <= 8 * length - 33
    # k = 2 leaves one place; the cdf below 2 (0.98 %) and k = 2 itself (up to 3: 2.3 %) fall on it
    assert 0.012 < (ends == 63).mean() < 0.035
    short, moved = many(Pieces(length, factor, 9.0, 3.0), length, 300, 300)
    np.testing.assert_array_equal(moved[:, 64:], ids[:300, 64:])
    np.testing.assert_array_equal(short[:, 64:], np.broadcast_to(np.arange(268, 300), (300, 32)))
    late = moved[:, 63] >= 300
    assert late.any() and not late.all()
    assert (short[late, 63] == 267).all()  # just before the tail
    np.testing.assert_array_equal(short[~late, :64], moved[~late, :64])
    where, ids = many(Pieces(99, 4, 9.0, 3.0), 99, 10_000, 300)
    tails = (np.diff(ids, axis=1)[:, ::-1] != 1).argmax(1) + 1
    assert {16, 33} <= set(tails) <= {16, 33, 16 + 67, 33 + 33}  # the middle may touch the tail
    assert 0.4 < (tails % 33 == 0).mean() < 0.6


def test_cream_asks_for_room():
    make = lambda **options: positions.make(dict(name="cream", **options), site(train_length=64))
    assert make(max_length=256).data_transform() == Pieces(64, 4, 9.0, 3.0)
    assert make(max_length=256, mean=None).data_transform().mean == 5.0
    for options in (dict(), dict(max_length=32)):
        with pytest.raises(ConfigError, match="leaves tokens between two ends"):
            make(**options).data_transform()


TRANSFORM = Skip(256, 5)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_moved_text_stays_in_its_document_and_is_followed_by_itself(source, packing):
    moved = plain = jumps = 0
    data = source(packing)
    kept = take(data.train_batches(), 12)
    for batch, still in zip(take(data.train_batches(TRANSFORM), 12), kept):
        assert batch.keys() == still.keys() | {"moved"}
        np.testing.assert_array_equal(batch["ids"], still["ids"])
        if "segment" in batch:
            np.testing.assert_array_equal(batch["segment"], still["segment"])
            np.testing.assert_array_equal(batch["document"], still["document"])
        follows = lambda a, b: (b - a) % 90 == 7
        inside = batch["weights"] > 0
        same = np.zeros_like(inside)
        same[:, :-1] = batch["document"][:, 1:] == batch["document"][:, :-1]
        if "segment" in batch:
            same[:, :-1] &= batch["segment"][:, 1:] == batch["segment"][:, :-1]
        nxt = np.roll(batch["inputs"], -1, 1)
        np.testing.assert_array_equal(batch["targets"][same], nxt[same])
        steady = follows(batch["inputs"], batch["targets"])
        ended = ~same & inside  # the last of a row or of a piece is followed by its own text
        assert steady[ended].all()
        jumps += (~steady & inside & same).sum()
        changed = (batch["inputs"] != still["inputs"]).any(1)
        moved, plain = moved + changed.sum(), plain + (~changed).sum()
        assert batch["moved"].dtype == np.float32 and batch["moved"].max() > LENGTH
    assert moved > 10 and jumps > 10


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_moved_batches_resume_and_share_out_exactly(source, packing):
    whole = take(source(packing).train_batches(TRANSFORM), 9)
    parts, state = [], None
    for count in (2, 3, 4):
        batches = source(packing).train_batches(TRANSFORM)
        if state is not None:
            batches.set_state(json.loads(json.dumps(state)))
        parts += take(batches, count)
        state = batches.get_state()
    assert_same(parts, whole)
    halves = [take(source(packing, process=(n, 2)).train_batches(TRANSFORM), 9) for n in (0, 1)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves)]
    assert_same(joined, whole)
    with pytest.raises(DataError, match="belongs to other data"):
        source(packing).train_batches().set_state(state)
    assert all((a["moved"] != b["moved"]).any() for a, b in zip(whole, whole[1:]))


def test_the_model_asks_for_its_transform_and_reads_the_moved_ids(source):
    build = lambda *specs: build_model(dict(
        vocab_size=256, width=16, depth=len(specs), mlp=None, position="rope",
        mixer=dict(name="attention", num_heads=2), pattern=[dict(position=s) for s in specs]),
        LENGTH)
    pose = dict(name="pose", max_length=256)
    model = build([pose, "rope"], "alibi", [pose, "alibi"])
    assert model.data_transform() == TRANSFORM and build("rope").data_transform() is None
    batch = next(source("first_fit").train_batches(model.data_transform()))
    seq = sequence_of(batch)
    scheme = positions.make([pose, "rope"], site())
    np.testing.assert_array_equal(scheme.remap(seq, jax.random.key(0)).ids[..., 0], batch["moved"])
    assert scheme.remap(seq) is seq  # evaluation
    with pytest.raises(ConfigError, match="nothing has moved this one"):
        scheme.remap(sequence_of({**batch, "moved": None}), jax.random.key(0))
    with pytest.raises(ConfigError, match="different ways"):
        build([pose, "rope"], [dict(pose, text=2), "rope"]).data_transform()
    with pytest.raises(ConfigError, match="two data transform lanes"):
        build([pose, dict(name="cream", max_length=64), "rope"]).data_transform()
    task = data.load(dict(task=dict(name="mqar"), train_length=64))
    with pytest.raises(ConfigError, match="rows of the task 'mqar' are wholes"):
        task.train_batches(TRANSFORM)
