"""Position ids of interleaved text, images and videos, in the styles of published models.

    ids, offset = position_ids([Text(5), Image(2, 4), Text(3)], "qwen2_vl")

ids [T,A] float64, one row per token; the token number n that is decoded after them has id
n + offset on every axis. Images and videos are row by row, frame by frame, in patches *after* any
merging. Feed them to `lcx.lanes.sequence(ids=...)`, under the scheme that each style names.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lcx.errors import ConfigError, did_you_mean


class Text(NamedTuple):
    """`tokens` tokens of text."""

    tokens: int


class Image(NamedTuple):
    """A grid of patches."""

    height: int
    width: int


class Video(NamedTuple):
    """A grid of patches over time; seconds: between two of its frames (Qwen2.5-VL)."""

    frames: int
    height: int
    width: int
    seconds: float = 1.0


Span = Text | Image | Video
Style = Callable[..., tuple[np.ndarray, float]]  # (span, its first id, options) -> ids, next id


def position_ids(spans: Sequence[Span], style: str, **options) -> tuple[np.ndarray, float]:
    """Ids [T,A] of all tokens of the spans, and the offset of what is decoded after them."""
    if style not in STYLES:
        raise ConfigError(f"no style of ids is called '{style}'" + did_you_mean(style, STYLES))
    known = list(inspect.signature(STYLES[style]).parameters)[2:]
    for key in options:
        if key not in known:
            raise ConfigError(f"the ids of '{style}' have no option '{key}'"
                              + did_you_mean(key, known))
    found, following = [], 0.0
    for span in spans:
        ids, following = STYLES[style](span, following, **options)
        found.append(ids)
    ids = np.concatenate(found)
    return ids, following - len(ids)


def grid(*sizes: int) -> np.ndarray:
    """Indices [n,A] of all cells, last axis fastest: ids of a lone image or video (RoPE-2D, 3D)."""
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(
        -1, len(sizes)).astype(float)


# ---- axes (time, height, width) -----------------------------------------------------------------


def qwen2_vl(span: Span, start: float) -> tuple[np.ndarray, float]:
    """M-RoPE (arXiv:2409.12191), scheme m_rope: t is the frame, all three axes count from `start`.

    The next span starts above the largest id of *any* axis (Qwen's own code; transformers 5 leaves
    t out, so that text after a long video gets smaller ids there).
    """
    if isinstance(span, Text):
        return text(span, start, 3)
    ids = start + grid(frames(span), *span[-2:] if isinstance(span, Image) else span[1:3])
    return ids, ids.max() + 1


def qwen2_5_vl(span: Span, start: float) -> tuple[np.ndarray, float]:
    """Qwen2.5-VL (arXiv:2502.13923), scheme m_rope: t of a video is floor(frame x seconds x 2).

    The product is one of float32: floor(5 x 0.7 x 2) = 7, where float64 arithmetic on a float32
    0.7 gives 6.
    """
    ids, following = qwen2_vl(span, start)
    if isinstance(span, Video):
        frame = np.float32(ids[:, 0] - start)
        ids[:, 0] = start + np.floor(frame * np.float32(span.seconds) * np.float32(2.0))
        following = ids.max() + 1
    return ids, following


def qwen3_vl(span: Span, start: float) -> tuple[np.ndarray, float]:
    """Qwen3-VL (github.com/QwenLM/Qwen3-VL), scheme m_rope(arrangement="interleaved").

    A frame is an image of its own; its time is told in text before it, which the caller lists.
    """
    if isinstance(span, Video):
        raise ConfigError("qwen3_vl has no video: list Text(n) of its timestamp and then "
                          "Image(height, width) for each frame")
    return qwen2_vl(span, start)


def spatial_reset(span: Span, start: float) -> tuple[np.ndarray, float]:
    """MRoPE-Interleave and MHRoPE (arXiv:2510.23095), schemes m_rope and multi_head_rope; OmniGen2
    (arXiv:2506.18871): rows and columns of every image count from 0, only t goes on.

    The next span starts where that of qwen2_vl does. A video is a frame after another, each behind
    its timestamp; one without has t = start + frame.
    """
    ids, following = qwen2_vl(span, start)
    if not isinstance(span, Text):
        ids[:, 1:] -= start
    return ids, following


def circle_rope(span: Span, start: float, radius: float = 10.0,
                alpha: float = 0.5) -> tuple[np.ndarray, float]:
    """Circle-RoPE (arXiv:2505.16416), scheme m_rope: an image lies on a circle around its first id,
    in the plane across the line t = h = w on which text lies, so that a token of text is equally
    far from all patches.

    A patch's angle is alpha x its direction from the middle, stretched to one turn, + (1 - alpha)
    x 2 pi its share of the patches before it. The next span starts above the largest id, which may
    be a fraction. Radius, alpha and the formula are of the authors' config and code (github.com/
    lose4578/CircleRoPE). Their layers use these ids and qwen2_5_vl's in turn, "AGE": the ids of a
    model are the same for all layers here.
    """
    if isinstance(span, Text):
        return text(span, start, 3)
    height, width = image(span, "circle_rope")
    row, column = grid(height, width).T
    direction = np.arctan2(row - (height - 1) / 2, column - (width - 1) / 2)
    if (reach := np.ptp(direction)) > 0:
        direction = (direction - direction.min()) / reach * 2 * np.pi
    share = np.arange(height * width) / (height * width) * 2 * np.pi
    angle = alpha * direction + (1 - alpha) * share
    across = np.array([[-1.0, 1.0, 0.0], [-1.0, -1.0, 2.0]]) / np.sqrt([[2.0], [6.0]])
    place = radius * np.stack([np.cos(angle), np.sin(angle)], -1) @ across  # (width, height, time)
    ids = start + place[:, ::-1]
    return ids, ids.max() + 1


def mm_rope(span: Span, start: float,
            scale: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> tuple[np.ndarray, float]:
    """MM-RoPE of Lumos-1 (arXiv:2507.08801), scheme m_rope(arrangement="distributed"): qwen2_vl's
    grid with steps of `scale` in time, height and width, such as (4, 8, 8), the compression of the
    latents. Known from github.com/JJJYmmm/Multimodal-RoPEs.
    """
    ids, following = qwen2_vl(span, start)
    if not isinstance(span, Text):
        ids = start + (ids - start) * np.array(scale)
        following = ids.max() + 1
    return ids, following


def video_rope(span: Span, start: float, stride: float = 2.0) -> tuple[np.ndarray, float]:
    """VideoRoPE (arXiv:2502.05173), scheme video_rope: frames lie along the diagonal, 2 ids apart.

    t = start + stride x frame; h and w are centred on it. The next span starts above the largest t.
    HoPE (arXiv:2505.20444), scheme hope_video, has the same ids: in training a stride for each
    video, drawn from `HOPE_STRIDES`, and one of them that the user chooses in use.
    """
    if isinstance(span, Text):
        return text(span, start, 3)
    height, width = span[-2:] if isinstance(span, Image) else span[1:3]
    ids = grid(frames(span), height, width)
    ids[:, 0] = start + stride * ids[:, 0]
    ids[:, 1] += ids[:, 0] - (height - 1) // 2
    ids[:, 2] += ids[:, 0] - (width - 1) // 2
    return ids, ids[:, 0].max() + 1


# ---- axes (height, width), or one ---------------------------------------------------------------


def rope_tie(span: Span, start: float, whole: bool = True) -> tuple[np.ndarray, float]:
    """RoPE-Tie (kexue.fm/archives/10040), scheme rope_tie: an image begins and ends at equal steps
    from the text around it, on both axes.

    Patch (i,j) from 1 has (L + i s, L + j t) after text that ends at L, the next token L + (h+1) s
    = L + (w+1) t. The smallest whole steps are s = w+1, t = h+1; whole=False: s = (hw+1)/(h+1) and
    t = (hw+1)/(w+1), so that an image takes as many ids as it has patches. Two images need text
    between them (a token each of their begin and end).
    """
    if isinstance(span, Text):
        return text(span, start, 2)
    height, width = image(span, "rope_tie")
    behind = (height + 1.0) * (width + 1.0) if whole else height * width + 1.0
    steps = behind / np.array([height + 1.0, width + 1.0])
    return start - 1 + (1 + grid(height, width)) * steps, start - 1 + behind


def rope_tie_v2(span: Span, start: float) -> tuple[np.ndarray, float]:
    """RoPE-Tie-v2, or RoPE-TV (kexue.fm/archives/10352), scheme rope_tie_v2: unit steps, centred.

    An image of h x w takes h w ids, as many as its tokens, with equal gaps before and after. The
    offsets may be half-integers, and stay so; HunyuanImage-3's code truncates them.
    """
    if isinstance(span, Text):
        return text(span, start, 2)
    height, width = image(span, "rope_tie_v2")
    gap = (height * width - np.array([height, width])) / 2
    return start + gap + grid(height, width), start + height * width


def v2pe(span: Span, start: float, reach: float = 16.0) -> tuple[np.ndarray, float]:
    """V2PE (arXiv:2412.09616), scheme rope: the patches of an image or video share 16 ids.

    The step after the last token is 16/patches; the next token has a whole id again, at least one
    further.
    """
    if isinstance(span, Text):
        return text(span, start, 1)
    count = math.prod(span[:2] if isinstance(span, Image) else span[:3])
    ids = start - 1 + reach * np.arange(1, count + 1) / count  # exact at the end
    return ids[:, None], math.ceil(ids[-1]) + 1.0


STYLES: dict[str, Style] = {style.__name__: style for style in (
    qwen2_vl, qwen2_5_vl, qwen3_vl, spatial_reset, circle_rope, mm_rope, video_rope, rope_tie,
    rope_tie_v2, v2pe)}
HOPE_STRIDES = (0.5, 0.75, 1.0, 1.25, 1.5)


# ---- shared --------------------------------------------------------------------------------------


def text(span: Text, start: float, axes: int) -> tuple[np.ndarray, float]:
    """Equal ids on all axes."""
    ids = start + np.arange(span.tokens, dtype=float)
    return np.repeat(ids[:, None], axes, 1), start + span.tokens


def frames(span: Image | Video) -> int:
    """How many; an image is one."""
    return span.frames if isinstance(span, Video) else 1


def image(span: Image | Video, style: str) -> tuple[int, int]:
    """Height and width. Raises ConfigError for a video."""
    if isinstance(span, Video):
        raise ConfigError(f"{style} is defined for images only; use video_rope or qwen2_vl ids")
    return span
