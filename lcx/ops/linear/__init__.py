"""Linear attention with decay and erase: one recurrence, its chunked form and its naive twin."""

from lcx.ops.linear.api import linear_attention

__all__ = ["linear_attention"]
