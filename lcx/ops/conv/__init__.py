"""Causal depthwise convolution over a short window, in one call or streamed."""

from lcx.ops.conv.short import ConvState, init_state, short_conv

__all__ = ["ConvState", "init_state", "short_conv"]
