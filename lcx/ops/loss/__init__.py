"""Cross-entropy over a vocabulary without the [B,T,V] logits in memory."""

from lcx.ops.loss.cross_entropy import cross_entropy

__all__ = ["cross_entropy"]
