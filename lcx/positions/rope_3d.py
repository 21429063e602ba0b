"""RoPE-3D: pairs turn with the frame, the row or the column of a patch of a video."""

from __future__ import annotations

from typing import ClassVar

from lcx.positions.rope_2d import Rope2d


class Rope3d(Rope2d):
    """Axial RoPE of video transformers (arXiv:2408.06072): as RoPE-2D, over (time, height, width).

    sections: pairs of each axis, (8,12,12) of 32 in CogVideoX; equal shares if None.
    """

    axes: ClassVar[int] = 3
    paper: ClassVar[str] = "arXiv:2408.06072"
    examples: ClassVar[tuple[dict, ...]] = ({},)
