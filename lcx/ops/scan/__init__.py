"""Element-wise linear recurrences, with an optional rotation of channel pairs."""

from lcx.ops.scan.diagonal import diagonal_scan

__all__ = ["diagonal_scan"]
