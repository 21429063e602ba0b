"""Ids of text, images and videos, and the rotations that read them: published numbers, twins."""

import numpy as np
import pytest

from lcx import lanes as L
from lcx import positions
from lcx.errors import ConfigError
from lcx.spans import HOPE_STRIDES, STYLES, Image, Text, Video, grid, position_ids
from tests.positions.speaking import site, softmax, speak, theta, turned, vectors, weights

THREE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "spatial_reset", "circle_rope", "mm_rope",
         "video_rope")


def axes(spec, dim=128):
    """The id axis of each pair."""
    return speak(spec, L.sequence(1, 1), dim=dim)[0].transport.axis


# ---- ids -----------------------------------------------------------------------------------------


def test_text_alone_counts_on_every_axis():
    for style in STYLES:
        ids, offset = position_ids([Text(3), Text(2)], style)
        np.testing.assert_array_equal(ids, np.repeat(np.arange(5.0)[:, None], ids.shape[1], 1))
        assert offset == 0 and ids.shape[1] == (3 if style in THREE else 1 if style == "v2pe"
                                                else 2)


def test_qwen2_vl():
    ids, offset = position_ids([Text(2), Video(2, 2, 3), Text(2)], "qwen2_vl")
    wanted = [[0, 0, 0], [1, 1, 1]]
    wanted += [[2 + t, 2 + h, 2 + w] for t in range(2) for h in range(2) for w in range(3)]
    wanted += [[5, 5, 5], [6, 6, 6]]  # above the largest of any axis, here the width
    np.testing.assert_array_equal(ids, wanted)
    assert offset == 7 - 16
    ids, offset = position_ids([Text(1), Video(9, 2, 3), Text(1)], "qwen2_vl")
    assert ids[-1].tolist() == [10, 10, 10]  # above the time; 6 lower in transformers 5
    assert offset == 11 - len(ids)
    ids, _ = position_ids([Image(2, 2), Image(1, 1)], "qwen2_vl")
    assert ids.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [2, 2, 2]]


def test_qwen2_5_vl_multiplies_in_float32():
    ids, _ = position_ids([Video(6, 1, 1, seconds=0.7)], "qwen2_5_vl")
    assert ids[5, 0] == 7
    assert np.floor(5 * np.float64(np.float32(0.7)) * 2) == 6  # the trap
    ids, _ = position_ids([Text(3), Video(3, 2, 2, seconds=1.3), Text(1)], "qwen2_5_vl")
    assert ids[3::4, 0].tolist() == [3, 5, 8, 9]
    assert ids[3:7, 1:].tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]] == ids[11:15, 1:].tolist()
    image, offset = position_ids([Text(3), Image(2, 2)], "qwen2_5_vl")
    np.testing.assert_array_equal(image, position_ids([Text(3), Image(2, 2)], "qwen2_vl")[0])
    # 2.6 ids per frame and 9 frames: the next text is 20 + 1 above the start
    ids, _ = position_ids([Video(9, 2, 3, seconds=1.3), Text(1)], "qwen2_5_vl")
    assert ids[-1, 0] == 21


def test_qwen3_vl_tells_the_time_in_text():
    spans = [Text(2), Text(3), Image(2, 2), Text(3), Image(2, 2), Text(1)]
    ids, _ = position_ids(spans, "qwen3_vl")
    assert ids[5:9, 0].tolist() == [5] * 4 and ids[12:16, 0].tolist() == [10] * 4
    assert ids[8].tolist() == [5, 6, 6] and ids[9].tolist() == [7, 7, 7]
    with pytest.raises(ConfigError, match="Text.n. of its timestamp"):
        position_ids([Video(2, 2, 2)], "qwen3_vl")


def test_video_rope():
    ids, offset = position_ids([Text(4), Video(3, 3, 4), Text(2)], "video_rope")
    video = ids[4:40].reshape(3, 3, 4, 3)
    for frame in range(3):
        t = 4 + 2.0 * frame
        assert (video[frame, ..., 0] == t).all()
        assert video[frame, :, 0, 1].tolist() == [t - 1, t, t + 1]
        assert video[frame, 0, :, 2].tolist() == [t - 1, t, t + 1, t + 2]
    assert ids[40].tolist() == [9, 9, 9] and offset == 11 - 42  # above the largest time only


def test_rope_tie_goldens():
    ids, offset = position_ids([Text(4), Image(2, 4), Text(1)], "rope_tie")  # text ends at 3
    assert ids[4].tolist() == [8, 6] and ids[11].tolist() == [13, 15]
    assert ids[12].tolist() == [18, 18] and offset == 19 - 13


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("height, width", [(2, 4), (5, 3), (4, 4)])
def test_rope_tie_is_symmetric_around_an_image(height, width, whole):
    """Equal steps from the text before to the first patch and from the last one to the text."""
    ids, offset = position_ids([Text(3), Image(height, width), Text(2)], "rope_tie", whole=whole)
    first, last = ids[3] - ids[2], ids[-2] - ids[-3]
    np.testing.assert_allclose(first, last)
    taken = (height + 1) * (width + 1) - 1 if whole else height * width
    np.testing.assert_allclose(ids[-2], 2 + taken + 1)
    assert offset == pytest.approx(taken - height * width)
    if whole:
        assert first.tolist() == [width + 1, height + 1]


def test_rope_tie_v2_goldens():
    ids, offset = position_ids([Text(3), Image(2, 4), Text(1)], "rope_tie_v2")
    assert ids[3].tolist() == [6, 5] and ids[10].tolist() == [7, 8]
    assert ids[11].tolist() == [11, 11] and offset == 0  # an image takes as many ids as tokens
    ids, _ = position_ids([Image(2, 3), Text(1)], "rope_tie_v2")
    assert ids[0].tolist() == [2, 1.5]  # half-integers stay
    before, after = ids[0] - -1, ids[6] - ids[5]  # symmetric gaps: 1 + (wh - h)/2, 1 + (wh - w)/2
    assert before.tolist() == after.tolist() == [1 + (6 - 2) / 2, 1 + (6 - 3) / 2]
    for style in ("rope_tie", "rope_tie_v2"):
        with pytest.raises(ConfigError, match="images only"):
            position_ids([Video(2, 2, 2)], style)


@pytest.mark.parametrize("height, width", [(3, 7), (7, 7), (1, 16), (13, 11)])
def test_v2pe_shares_16_ids(height, width):
    ids, offset = position_ids([Text(5), Image(height, width), Text(2)], "v2pe")
    count = height * width
    np.testing.assert_allclose(np.diff(ids[4:5 + count, 0]), 16 / count)
    assert ids[4 + count, 0] == 20 and ids[5 + count, 0] == 21  # never ceil(20.000000001)
    assert offset == 23 - len(ids)
    np.testing.assert_array_equal(position_ids([Video(height, width, 1)], "v2pe")[0],
                                  position_ids([Image(height, width)], "v2pe")[0])


def test_grid_and_unknown_styles():
    assert grid(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    with pytest.raises(ConfigError, match="did you mean 'qwen2_vl'"):
        position_ids([Text(1)], "qwen2_v")


# ---- rotations -----------------------------------------------------------------------------------


def test_axes_goldens():
    assert axes("video_rope") == (1, 2) * 24 + (0,) * 16
    assert [axes("video_rope").count(a) for a in range(3)] == [16, 24, 24]
    assert axes("rope_tie", 8) == axes("rope_tie_v2", 8) == (0, 1, 0, 1)
    assert axes("rope_2d", 12) == (0, 0, 0, 1, 1, 1)
    assert axes("rope_3d", 16) == (0, 0, 0, 1, 1, 1, 2, 2)
    assert axes(dict(name="rope_3d", sections=(2, 3, 3)), 16) == (0, 0, 1, 1, 1, 2, 2, 2)


def spread(length, count, seed=4):
    """Ids [1,T,A], uneven, with halves."""
    return np.random.default_rng(seed).integers(0, 40, (1, length, count)) / 2


@pytest.mark.parametrize("spec, dim, axis, ladder", [
    ("rope_2d", 8, (0, 0, 1, 1), np.r_[theta(4), theta(4)]),
    ("rope_3d", 12, (0, 0, 1, 1, 2, 2), np.r_[theta(4), theta(4), theta(4)]),
    (dict(name="rope_3d", sections=(1, 2, 3), base=100.0), 12, (0, 1, 1, 2, 2, 2),
     np.r_[1, theta(4, 100.0), theta(6, 100.0)]),
    ("rope_tie", 8, (0, 1, 0, 1), theta(8)), ("rope_tie_v2", 8, (0, 1, 0, 1), theta(8)),
    ("video_rope", 16, (1, 2, 1, 2, 1, 2, 0, 0), theta(16)),
    ("video_rope", 4, (1, 2), theta(4)), ("hope_video", 4, (1, 2), theta(4)),  # no pair of time
], ids=str)
def test_rotations_of_several_axes_against_a_twin(spec, dim, axis, ladder, x64):
    length, count = 7, max(axis) + 1
    q, k, _ = vectors(length, dim=dim)
    ids = spread(length, count)
    moved = ids[0][:, axis]
    wanted = turned(q, k, (moved[:, None] - moved[None]) * ladder) / np.sqrt(dim)
    got = weights(spec, q, k, L.sequence(1, length, ids=ids))
    np.testing.assert_allclose(got, softmax(wanted), atol=1e-6)
    apart = ids + np.array([3.0, -5.0, 11.0])[:count]  # each axis by an amount of its own
    np.testing.assert_allclose(weights(spec, q, k, L.sequence(1, length, ids=apart)), got,
                               atol=1e-9)


@pytest.mark.parametrize("spec, like_rope", [
    ("m_rope", True), (dict(name="m_rope", arrangement="interleaved"), True), ("video_rope", True),
    ("rope_tie", True), ("rope_tie_v2", True), ("rope_2d", False), ("rope_3d", False)], ids=str)
def test_text_is_rope_where_the_axes_share_a_ladder(spec, like_rope, x64):
    q, k, _ = vectors(9, dim=32)
    plain = weights("rope", q, k, L.sequence(1, 9))
    for count in (1, 3):
        text = L.sequence(1, 9, ids=np.repeat(np.arange(9.0)[None, :, None], count, -1))
        got = weights(spec, q, k, text)
        assert np.allclose(got, plain, atol=1e-12) == like_rope


@pytest.mark.parametrize("spec, words", [
    (dict(name="rope_2d", sections=(4, 1)), "divide the 4 rotated pairs"),
    (dict(name="rope_2d", sections=(5, -1)), "with each int, 0 or more"),
    (dict(name="rope_3d", sections=(2, 2)), "among 3 axes"),
    (dict(name="video_rope", time_pairs=3), "choose time_pairs so that it is even"),
])
def test_bad_sections_raise(spec, words):
    with pytest.raises(ConfigError, match=words):
        axes(spec, 8)


def test_spatial_reset_keeps_the_start_of_the_next_span():
    spans = [Text(4), Image(3, 5), Text(3), Video(4, 2, 1), Text(2)]
    ids, offset = position_ids(spans, "spatial_reset")
    plain, same = position_ids(spans, "qwen2_vl")
    assert offset == same
    text = np.r_[0:4, 19:22, 30:32]
    np.testing.assert_array_equal(ids[text], plain[text])
    np.testing.assert_array_equal(ids[:, 0], plain[:, 0])
    np.testing.assert_array_equal(ids[4:19, 1:], grid(3, 5))
    np.testing.assert_array_equal(ids[22:30, 1:], np.tile(grid(2, 1), (4, 1)))


CIRCLE = [[0.0, 7.071068, -7.071068], [7.527472, -1.0246, -6.502873],
          [5.83187, -7.864871, 2.033001], [-8.164966, 4.082483, 4.082483],
          [-8.100424, 3.162883, 4.937541], [-7.907817, 2.193278, 5.714539]]


def test_circle_rope_is_equally_far_from_text():
    ids, offset = position_ids([Text(2), Image(3, 5), Text(2)], "circle_rope")
    centre = ids[2:17] - 2
    np.testing.assert_allclose((centre ** 2).sum(1), 100)  # the radius
    np.testing.assert_allclose(centre.sum(1), 0, atol=1e-12)  # across the line of text
    for text in ids[[0, 1, 17, 18]]:
        apart = np.linalg.norm(ids[2:17] - text, axis=1)
        assert np.ptp(apart) < 1e-12
    assert ids[17].tolist() == [ids[2:17].max() + 1] * 3 and offset == ids[-1, 0] + 1 - 19
    # by the authors' code, radius 10 and alpha 0.5: (t, h, w) of 2 x 3 patches
    got, _ = position_ids([Image(2, 3)], "circle_rope")
    np.testing.assert_allclose(got, CIRCLE, atol=2e-6)
    lone, _ = position_ids([Image(1, 1)], "circle_rope")
    np.testing.assert_allclose(lone[0], [0, 10 / 2 ** 0.5, -10 / 2 ** 0.5])


def test_mm_rope_scales_each_axis():
    ids, offset = position_ids([Text(2), Video(2, 2, 2), Text(1)], "mm_rope", scale=(4.0, 8.0, 8.0))
    np.testing.assert_array_equal(ids[2:10], 2 + grid(2, 2, 2) * [4, 8, 8])
    assert ids[10].tolist() == [11] * 3 and offset == 12 - 11
    with pytest.raises(ConfigError, match="no option 'scales'; did you mean 'scale'"):
        position_ids([Text(2)], "mm_rope", scales=1)


def test_hope_chooses_the_stride_of_a_video():
    ids, offset = position_ids([Text(2), Video(3, 1, 1), Text(1)], "video_rope", stride=0.75)
    assert ids[2:5].tolist() == [[2.0] * 3, [2.75] * 3, [3.5] * 3]
    assert ids[5].tolist() == [4.5] * 3 and offset == 5.5 - 6
    assert HOPE_STRIDES == (0.5, 0.75, 1.0, 1.25, 1.5)


# ---- rotations of further models -----------------------------------------------------------------


def test_hope_video_is_video_rope_without_time():
    found = speak("hope_video", L.sequence(1, 1), dim=128)[0].transport
    assert found.axis == axes("video_rope") == (1, 2) * 24 + (0,) * 16
    radians = np.asarray(found.frequency, np.float64).sum(0) * 2 * np.pi
    np.testing.assert_allclose(radians, np.where(np.arange(64) < 48, theta(128), 0.0), rtol=1e-6)


def test_mm_rope_repeats_its_pattern():
    spec = dict(name="m_rope", arrangement="distributed")
    assert axes(spec) == (0, 0, 1, 2, 1, 2, 1, 2) * 8
    assert [axes(spec).count(axis) for axis in range(3)] == [16, 24, 24]
    assert axes(spec, dim=20) == (0, 0, 1, 2, 1, 2, 1, 2, 0, 0)
    with pytest.raises(ConfigError, match="no sections"):
        axes(dict(spec, sections=(4, 3, 3)), dim=20)


def test_multi_head_rope_turns_each_head_with_its_own_axis(x64):
    ids, _ = position_ids([Text(3), Image(2, 3), Text(2)], "spatial_reset")
    length = len(ids)
    q, k, _ = vectors(length)
    seq = L.sequence(1, length, ids=ids[None])
    spec = dict(name="multi_head_rope", heads=(1, 2, 0))
    got = weights(spec, q, k, seq)
    for head, axis in enumerate((0, 1, 1)):
        angle = (ids[:, None, axis] - ids[None, :, axis])[..., None] * theta(8)
        wanted = softmax(turned(q, k, angle) / 8 ** 0.5)
        np.testing.assert_allclose(got[head], wanted[head], atol=1e-6)
    still = softmax(turned(q, k, np.zeros((length, length, 4))) / 8 ** 0.5)
    np.testing.assert_allclose(got[3], still[3], atol=1e-12)  # a head left over
    plain = L.sequence(1, length)
    np.testing.assert_allclose(weights(dict(spec, heads=(1, 2, 1)), q, k, plain),
                               weights("rope", q, k, plain), atol=1e-6)
    assert positions.make("multi_head_rope", site(heads=8)).shares() == (2, 3, 3)
    with pytest.raises(ConfigError, match="more than the 4 key heads"):
        weights(dict(spec, heads=(2, 2, 1)), q, k, plain)
    with pytest.raises(ConfigError, match="reads 3 axes of the ids, the sequence has 2"):
        weights(dict(spec, heads=(1, 1, 1)), q[:, :3], k[:, :3],
                L.sequence(1, 3, ids=ids[None, :3, :2]))
