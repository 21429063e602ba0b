"""HoPE for video: rows and columns turn, time does not."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lcx.positions.video_rope import VideoRope


class HopeVideo(VideoRope):
    """Hybrid of position embedding (arXiv:2505.20444): VideoRoPE's division of the pairs, with the
    pairs of time, the slowest, left unturned.

    So text has fewer turning pairs than RoPE, 48 of 64. Its ids are `lcx.spans.video_rope` with a
    stride for each video; two other methods of the name are `hope` (high frequencies) and a
    hyperbolic one. Checked against the authors' code (github.com/hrlics/HoPE).
    """

    paper: ClassVar[str] = "arXiv:2505.20444"

    def ladder(self) -> np.ndarray:
        return np.where(np.array(self.axis()) == 0, 0.0, super().ladder())
