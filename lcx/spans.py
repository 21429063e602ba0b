"""Position ids of interleaved text, images and videos, in the styles of published models.

    ids, offset = position_ids([Text(5), Image(2, 4), Text(3)], "qwen2_vl")

ids [T,A] float64, one row per token; the token number n that is decoded after them has id
n + offset on every axis. Images and videos are row by row, frame by frame, in patches *after* any
merging. Feed them to `lcx.lanes.sequence(ids=...)`, under the scheme that each style names.
"""

from __future__ import annotations

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
Style = Callable[[Span, float], tuple[np.ndarray, float]]  # (span, its first id) -> ids, next id


def position_ids(spans: Sequence[Span], style: str) -> tuple[np.ndarray, float]:
    """Ids [T,A] of all tokens of the spans, and the offset of what is decoded after them."""
    if style not in STYLES:
        raise ConfigError(f"no style of ids is called '{style}'" + did_you_mean(style, STYLES))
    found, following = [], 0.0
    for span in spans:
        ids, following = STYLES[style](span, following)
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


def video_rope(span: Span, start: float) -> tuple[np.ndarray, float]:
    """VideoRoPE (arXiv:2502.05173), scheme video_rope: frames lie along the diagonal, 2 ids apart.

    t = start + 2 frame; h and w are centred on it. The next span starts above the largest t.
    """
    if isinstance(span, Text):
        return text(span, start, 3)
    height, width = span[-2:] if isinstance(span, Image) else span[1:3]
    ids = grid(frames(span), height, width)
    ids[:, 0] = start + 2.0 * ids[:, 0]
    ids[:, 1] += ids[:, 0] - (height - 1) // 2
    ids[:, 2] += ids[:, 0] - (width - 1) // 2
    return ids, ids[:, 0].max() + 1


# ---- axes (height, width), or one ---------------------------------------------------------------


def rope_tie(span: Span, start: float) -> tuple[np.ndarray, float]:
    """RoPE-Tie (kexue.fm/archives/10040): steps so large that an image ends at one id on both axes.

    Patch (i,j) from 1 has (L + i (w+1), L + j (h+1)) after text that ends at L; the next token has
    L + (w+1)(h+1).
    """
    if isinstance(span, Text):
        return text(span, start, 2)
    height, width = image(span, "rope_tie")
    steps = np.array([width + 1.0, height + 1.0])
    return start - 1 + (1 + grid(height, width)) * steps, start - 1 + steps.prod()


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
    qwen2_vl, qwen2_5_vl, qwen3_vl, video_rope, rope_tie, rope_tie_v2, v2pe)}


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
