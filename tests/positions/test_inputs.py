"""Input lanes and id maps: multiplicative, FLOATER, Abacus; SHAPE, CAPE, PoSE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from lcx import lanes as L
from lcx import positions
from lcx.errors import ConfigError
from lcx.positions import floater, pose, shape
from tests.positions.speaking import WIDTH, embed, site, theta, vectors

PACKED = np.array([[1] * 5 + [2] * 9 + [1] * 6, [3] * 20])
RUNS = ((0, 0, 5), (0, 5, 14), (0, 14, 20), (1, 0, 20))  # row, first and last token of documents


def remap(spec, seq, key=None, **where):
    return positions.make(spec, site(**where)).remap(seq, key)


def draws(spec, seq, count=200, **where):
    """Many draws of the ids of axis 0: [count,B,T]."""
    one = jax.jit(lambda key: remap(spec, seq, key, **where).ids[..., 0])
    return np.stack([one(jax.random.key(n)) for n in range(count)])


# ---- input lanes ---------------------------------------------------------------------------------


def test_multiplicative_scales_each_channel_and_starts_near_no_position():
    x = vectors(6)[2]
    moved = L.sequence(1, 6, ids=np.array([0, 5, 2, 2, 15, 1.0])[None, :, None])
    run, found, x = embed("multiplicative", moved, x)
    table = found["params"]["table"]
    assert table.shape == (16, WIDTH) and np.mean(table) == pytest.approx(1, abs=0.01)
    assert 0.015 < np.std(table) < 0.025
    np.testing.assert_allclose(run(found, x, moved), x * table[np.array([0, 5, 2, 2, 15, 1])])
    same = {"params": {"table": jnp.ones_like(table)}}
    np.testing.assert_array_equal(run(same, x, moved), x)
    used = jax.grad(lambda v: run(v, x, moved).sum())(found)["params"]["table"]
    assert (np.abs(used).max(1) > 0).tolist() == [i in (0, 1, 2, 5, 15) for i in range(16)]
    with pytest.raises(ValueError, match=r"vectors for ids 0\.\.15, not for 16"):
        run(found, x[:, :1], L.sequence(1, 1, start=16))
    padded = L.sequence(1, 6, segment=np.array([[1, 1, 0, 0, 0, 0]]), ids=moved.ids + 99)
    padded = padded.replace(ids=padded.ids.at[:, :2].set(3.0))
    assert np.isfinite(jax.jit(run)(found, x, padded)).all()


def linear_floater(rng, rows, substeps):
    """A FLOATER whose hidden units never close, so that dp/dt = A p + b t + c exactly."""
    seq = L.sequence(1, rows)
    run, found, x = embed(dict(name="floater", rows=rows, substeps=substeps), seq, width=4)
    draw = lambda scale, *shape: scale * rng.normal(size=shape)
    first, second = draw(3.0, 5, 4), draw(3.0, 5, 4)
    first_bias, second_bias = np.full(4, 1e4), draw(1.0, 4)
    second_bias -= first_bias @ second[:4]  # take the large bias off again
    start = draw(1.0, 4)
    found = {"params": jax.tree.map(jnp.asarray, dict(
        start=start, first=dict(kernel=first, bias=first_bias),
        second=dict(kernel=second, bias=second_bias)))}
    matrix = np.zeros((6, 6))  # of the state (p, t, 1), with row vectors
    matrix[:4, :4], matrix[4, :4] = first[:4] @ second[:4], first[4] @ second[:4] + second[4]
    matrix[5, :4] = first_bias @ second[:4] + second_bias
    matrix[5, 4] = 1.0
    exact = np.stack([(np.r_[start, 0.0, 1.0] @ expm(0.01 * n * matrix))[:4]
                      for n in range(rows)])
    return np.asarray(run(found, x, seq))[0], exact


def test_floater_solves_its_equation_with_order_4(x64):
    errors = []
    for substeps in (1, 2, 4):
        got, exact = linear_floater(np.random.default_rng(0), 12, substeps)
        assert np.abs(exact - exact[0]).max() > 1
        errors.append(np.abs(got - exact)[1:].max())
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.25)


def test_floater_as_its_authors_write_it(x64):
    seq = L.sequence(1, 5)
    run, found, x = embed(dict(name="floater", rows=5, substeps=2), seq)
    p = jax.tree.map(np.asarray, found["params"])
    assert p["first"]["kernel"].shape == (WIDTH + 1, WIDTH)

    def h(t, point):  # flow_func_linear
        hidden = np.maximum(np.r_[point, t] @ p["first"]["kernel"] + p["first"]["bias"], 0)
        return np.r_[hidden, t] @ p["second"]["kernel"] + p["second"]["bias"]

    point, wanted = p["start"], [p["start"]]
    for n in range(8):
        t, w = n * 0.005, 0.005
        a = h(t, point)
        b = h(t + w / 2, point + w / 2 * a)
        c = h(t + w / 2, point + w / 2 * b)
        d = h(t + w, point + w * c)
        point = point + w / 6 * (a + 2 * b + 2 * c + d)
        wanted += [point] if n % 2 else []
    np.testing.assert_allclose(run(found, x, seq)[0], wanted, atol=1e-12)
    still = jax.tree.map(jnp.zeros_like, found)
    still["params"]["start"] = found["params"]["start"]  # h = 0: one vector for all
    np.testing.assert_array_equal(run(still, x, seq)[0], np.stack([p["start"]] * 5))
    slopes = jax.grad(lambda v: jnp.sin(run(v, x, seq)).sum())(found)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


def test_floater_raises_beyond_its_rows_and_has_eight_times_the_train_length():
    seq = L.sequence(1, 2, start=31)
    run, found, x = embed("floater", L.sequence(1, 2), train_length=4)
    with pytest.raises(ValueError, match=r"ids 0\.\.31, not for 32"):
        run(found, x, seq)
    assert np.isfinite(run(found, x, L.sequence(1, 2, start=30))).all()


def test_rk4_on_a_known_equation():
    step = lambda t, p: floater.rk4(lambda t, p: t ** 3 + 0 * p, t, p, 0.5)
    assert step(1.0, 2.0) == pytest.approx(2 + (1.5 ** 4 - 1) / 4)  # exact up to cubics


def digits(axis=1):
    """Ids of "12+345=": digit places on an axis of their own."""
    place = np.array([1, 2, 0, 1, 2, 3, 0.0])
    return L.sequence(1, 7, ids=np.stack([np.arange(7.0), place][:axis + 1], -1)[None])


def test_abacus_gives_each_digit_the_row_of_its_place():
    run, found, x = embed("abacus", digits())
    table = found["params"]["table"]
    assert table.shape == (1024, WIDTH)
    rows = np.array([1, 2, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(run(found, x, digits())[0], table[rows])
    seen = set()
    for n in range(40):
        moved = remap(dict(name="abacus", max_offset=3), digits(), jax.random.key(n))
        np.testing.assert_array_equal(moved.ids[..., 0], digits().ids[..., 0])
        offset = float(moved.ids[0, 0, 1]) - 1  # one for all numbers of the batch
        np.testing.assert_array_equal(moved.ids[0, :, 1], np.where(rows > 0, rows + offset, 0))
        seen.add(offset)
    assert seen == {0, 1, 2, 3}
    assert remap("abacus", digits()).ids is not None
    np.testing.assert_array_equal(remap("abacus", digits()).ids, digits().ids)


def test_abacus_says_what_the_data_must_give():
    text = L.sequence(1, 3)
    with pytest.raises(ConfigError, match="digit places on axis 1 of the ids, which has 1"):
        embed("abacus", text)
    with pytest.raises(ConfigError, match="place of each digit"):
        remap("abacus", text, jax.random.key(0))
    run, found, x = embed(dict(name="abacus", rows=3), digits())
    with pytest.raises(ValueError, match=r"ids 0\.\.2, not for 3"):
        run(found, x, digits())


# ---- id maps -------------------------------------------------------------------------------------


def test_shape_shifts_each_document_by_one_draw():
    seq = L.sequence(2, 20, segment=PACKED)
    shift = draws(dict(name="shape", max_shift=4), seq) - np.asarray(seq.ids)[..., 0]
    for row, a, b in RUNS:
        assert (shift[:, row, a:b] == shift[:, row, a:a + 1]).all()
        assert set(shift[:, row, a]) == {0, 1, 2, 3}
    assert (shift[:, 0, 0] != shift[:, 0, 5]).any() and (shift[:, 0, 0] != shift[:, 1, 0]).any()
    np.testing.assert_array_equal(remap("shape", seq).ids, seq.ids)
    late = remap(dict(name="shape", evaluation_shift=500), seq)
    np.testing.assert_array_equal(late.ids, seq.ids + 500)
    np.testing.assert_array_equal(late.index, seq.index)


def test_a_document_takes_the_draw_of_its_first_slot():
    drawn = jnp.arange(40).reshape(2, 20)
    found = shape.of_document(L.sequence(2, 20, segment=PACKED), drawn)
    for row, a, b in RUNS:
        assert (np.asarray(found[row, a:b]) == 20 * row + a).all()


def test_shape_leaves_inner_products_of_sinusoids_alone():
    run, found, x = embed(["shape", "sinusoidal"], L.sequence(1, 9), width=32)
    moved = remap("shape", L.sequence(1, 9), jax.random.key(3))
    assert moved.ids[0, 0, 0] > 0
    wave, base = np.asarray(run(found, x, moved))[0], np.arange(9)
    wanted = np.cos((base[:, None] - base)[..., None] * theta(32)).sum(-1)
    np.testing.assert_allclose(wave @ wave.T, wanted, atol=1e-4)


def test_cape_shifts_jitters_and_stretches():
    seq = L.sequence(2, 20, segment=PACKED)
    options = dict(name="cape", global_shift=5.0, local_shift=0.5, scaling=1.5)
    ids, plain = draws(options, seq), np.asarray(seq.ids)[..., 0]
    assert (np.diff(ids[:, 1], axis=-1) > 0).all()  # the order stays
    only = lambda **one: draws(dict(name="cape", global_shift=0.0, local_shift=0.0, scaling=1.0)
                               | one, seq)
    np.testing.assert_array_equal(only(), np.broadcast_to(plain, ids.shape))
    shift = only(global_shift=5.0) - plain
    stretch = only(scaling=1.5)[..., plain[0] > 0]
    jitter = only(local_shift=0.5) - plain
    for row, a, b in RUNS:
        assert np.ptp(shift[:, row, a:b], axis=-1).max() < 1e-5
        assert shift[:, row].min() < -4.5 and shift[:, row].max() > 4.5
        assert np.ptp(jitter[:, row, a:b], axis=-1).min() > 0.1
    assert np.abs(jitter).max() <= 0.5 and jitter.min() < -0.49 and np.abs(jitter.mean()) < 0.01
    factor = stretch[:, 0] / plain[0][plain[0] > 0]
    assert factor.min() == pytest.approx(1 / 1.5, rel=0.05) and factor.max() <= 1.5 + 1e-5
    assert np.log(factor).mean() == pytest.approx(0, abs=0.06)  # log-uniform
    both = draws(dict(name="cape", global_shift=5.0, local_shift=0.0, scaling=1.5), seq)
    ratio = (both[:, 1, 2:] - both[:, 1, :-2]) / 2  # (id + D) s: the step is s, the first D s
    assert np.abs(both[:, 1, 0] / ratio[:, 0]).max() <= 5 + 1e-4
    assert remap("cape", seq) is seq
    with pytest.raises(ConfigError, match="1 or more"):
        remap(dict(name="cape", scaling=0.9), seq)


def test_pose_cuts_once_and_skips():
    seq = L.sequence(2, 20, segment=PACKED)
    jump = draws(dict(name="pose", max_length=64, text=1), seq, 600) - np.asarray(seq.ids)[..., 0]
    for row, a, b in RUNS:
        n, here = b - a, jump[:, row, a:b]
        assert (here[:, 0] == 0).all() and (np.diff(here, axis=-1) >= 0).all()
        assert here.max() == 64 - n and here[:, -1].min() == 0  # ids reach 63
        cut = n - (here > 0).sum(-1)
        assert set(cut[here[:, -1] > 0]) == set(range(1, (n + 1) // 2 + 1))
        assert (np.ptp(np.where(here > 0, here, here[:, -1:]), axis=-1) == 0).all()  # one skip
        assert here[:, -1].mean() == pytest.approx((64 - n) / 2, rel=0.12)
    assert remap("pose", seq) is seq
    with pytest.raises(ConfigError, match="max_length >= 20 tokens, not 10"):
        remap(dict(name="pose", max_length=10, text=1), seq, jax.random.key(0))
    full = remap(dict(name="pose", max_length=20, text=1), L.sequence(1, 20), jax.random.key(0))
    np.testing.assert_array_equal(full.ids, L.sequence(1, 20).ids)  # no room to skip


def test_document_lengths_of_a_packed_row():
    seq = L.sequence(2, 20, segment=PACKED)
    wanted = np.array([[5] * 5 + [9] * 9 + [6] * 6, [20] * 20])
    np.testing.assert_array_equal(pose.document_lengths(seq), wanted)
