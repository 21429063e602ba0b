"""Causal convolutions of channels: over a short window, or with a kernel as long as the text."""

from lcx.ops.conv.dplr import Dplr
from lcx.ops.conv.fourier import Fft, Monarch
from lcx.ops.conv.long import long_conv
from lcx.ops.conv.modes import Modes, mode_conv
from lcx.ops.conv.short import ConvState, init_state, short_conv

__all__ = ["ConvState", "Dplr", "Fft", "Modes", "Monarch", "init_state", "long_conv", "mode_conv",
           "short_conv"]
