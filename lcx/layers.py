"""The parametrised pieces that schemes, mixers and models share: projection, norm, short conv."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.lanes import Sequence
from lcx.ops.conv import ConvState, short_conv
from lcx.types import wide
from lcx.weights import free, matrix

Initializer = Callable


class Dense(nn.Module):
    """Linear map of the trailing axes: [..., *inputs] -> [..., *features], in the dtype of x.

    features and axes: sizes and logical names of the output axes; in_axes: names of the
    contracted ones. The kernel starts normal with variance scale^2 / fan_in unless `init` is given.
    exact: of float32, for gates: the product is never rounded to TF32 (`lcx.types`).
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    in_axes: tuple[str, ...] = ("width",)
    use_bias: bool = False
    scale: float = 1.0
    init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros_init()
    exact: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-len(self.in_axes):]
        rows = x.shape[: -len(self.in_axes)]
        fan_in, fan_out = math.prod(inputs), math.prod(self.features)
        init = self.init or nn.initializers.normal(self.scale / math.sqrt(fan_in))
        kernel = self.param("kernel", matrix(
            init, (*self.in_axes, *self.axes)), (*inputs, *self.features))
        # One flat matrix product: on CPU several times quicker than the same einsum.
        y = jnp.matmul(x.reshape(-1, fan_in), kernel.astype(x.dtype).reshape(fan_in, fan_out),
                       precision=jax.lax.Precision.HIGHEST if self.exact else None)
        y = y.reshape(*rows, *self.features)
        if self.use_bias:
            bias = self.param("bias", free(self.bias_init, self.axes),
                              self.features)
            y = y + bias.astype(x.dtype)
        return y


class RmsNorm(nn.Module):
    """Root-mean-square norm of the last axis (arXiv:1910.07467), statistics wide.

    axis: logical name of the normalised axis; affine: learned gain, starting at 1.
    """

    axis: str = "width"
    eps: float = 1e-6
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = wide(x)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        if self.affine:
            gain = self.param("scale", free(
                nn.initializers.ones_init(), (self.axis,)), (x.shape[-1],))
            y = y * gain
        return y.astype(x.dtype)


class HeadNorm(nn.Module):
    """Layer norm of the last axis of [...,H,K] with a gain for each head, statistics wide.

    axes: logical names of H and K; the gain starts at 1.
    """

    axes: tuple[str, str] = ("heads", "head_dim")
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = wide(x)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        gain = self.param("scale", free(
            nn.initializers.ones_init(), self.axes), x.shape[-2:])
        return (y * gain).astype(x.dtype)


class ShortConv(nn.Module):
    """Causal depthwise convolution over `window` tokens of a document: [B,T,C] -> [B,T,C].

    axis: logical name of the channels. Kernel and bias start uniform within 1/sqrt(window), as a
    depthwise convolution does in most published code, unless kernel_init and bias_init say
    otherwise. Stream with `lcx.ops.conv.init_state(batch, window, C, dtype)` in the mixer's own
    `init_state`.
    """

    window: int = 4
    axis: str = "channels"
    use_bias: bool = False
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence,
                 state: ConvState | None = None) -> tuple[jax.Array, ConvState | None]:
        channels, bound = x.shape[-1], 1 / math.sqrt(self.window)

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", matrix(
            self.kernel_init or uniform, ("kernel", self.axis)), (self.window, channels))
        bias = None
        if self.use_bias:
            bias = self.param("bias", free(
                self.bias_init or uniform, (self.axis,)), (channels,))
        segment = seq.segment
        if state is not None and segment is None:  # one document is number 1, in every call
            segment = jnp.ones_like(seq.order)
        y, after = short_conv(x, kernel, bias, state=state, segment=segment)
        if state is None:
            return y, None
        return y, ConvState(after.tail.astype(state.tail.dtype), after.segment)


def token_before(x: jax.Array, seq: Sequence, state: ConvState | None = None):
    """The token before each one in its document [B,T,D], zero at the first; and the next state.

    Stream with `lcx.ops.conv.init_state(batch, 2, D, dtype)` in the mixer's own `init_state`.
    """
    segment = seq.segment
    if state is not None and segment is None:  # one document is number 1, in every call
        segment = jnp.ones_like(seq.order)
    kernel = jnp.zeros((2, x.shape[-1]), x.dtype).at[0].set(1)
    before, after = short_conv(x, kernel, state=state, segment=segment)
    if state is None:
        return before, None
    return before, ConvState(after.tail.astype(state.tail.dtype), after.segment)
