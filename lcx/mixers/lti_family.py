"""What a time-invariant mixer y_i = sum_j K(i - j) x_j does with each lane.

K is static: so is all that may multiply it. A gate of constant size is a shift of the poles' real
part, a rotation turns pairs of values (y_i = sum_j K(i - j) R_{j-i} x_j) and shifts the imaginary
part, a static bias is a factor exp(bias) of the kernel, which a Fourier transform takes for free.
What is read from the tokens, or changes with the reader's place, is refused. Tokens are counted by
K in arrival order, whatever their ids; lanes obey the ids.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx import lookup
from lcx.errors import ConfigError, did_you_mean
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Mixer, Support, refuses
from lcx.ops import pairs
from lcx.ops.attention import cache
from lcx.ops.conv import ConvState, Fft, Monarch, long_conv, short_conv, turned, weighed
from lcx.types import wide, wide_dtype

ALL = (QUADRATIC, CHUNKED, STEP)
_SHIFT = "absorbed: the same as a shift of the kernel's poles"
_FACTOR = "absorbed: the same as another kernel"
_RING = "unimplemented: ring buffer of near inputs beside a delayed state"
_CONTENT = "it is read from the tokens, and a time-invariant kernel is the same at every token"
_NO_PAIR = "there are no queries and keys"
SUPPORTS = {
    L.Rotation: Support(ALL, code="R6", reason=_SHIFT),
    L.ValueRotation: Support(ALL, code="R6", reason=_SHIFT),
    L.Diagonal: Support(ALL, code="R6", reason=_SHIFT),
    L.Separable: Support(ALL, code="R6", reason=_SHIFT),
    L.EventuallyConstant: Support((QUADRATIC, CHUNKED), {STEP: _RING}, "R6", _FACTOR),
    L.Toeplitz: Support((QUADRATIC, CHUNKED), {STEP: "R2 the kernel has no finite-rank state"}),
    L.Piecewise: Support((QUADRATIC,), {
        CHUNKED: "unimplemented: FFT form of a kernel that turns", STEP: _RING}),
    L.ContentRotation: refuses("R1", _CONTENT),
    L.Householder: refuses("R1", "channels never mix: there is no query-key product to transport"),
    L.FeatureMap: refuses("R1", f"{_NO_PAIR} to map"),
    L.Rowwise: refuses("R1", "its weight changes with the reader's place, which no time-invariant "
                       "kernel can follow"),
    L.Pairwise: refuses("R1", f"{_NO_PAIR} for its kernel to read"),
    L.Temperature: refuses("R1", "there is no query-key product to scale"),
    L.ValueTable: refuses("R1", "there are no weights of pairs to sum by distance"),
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
}
_AMPLITUDE = ("the rotation scales the query-key product (amplitude), and this mixer has none; "
              "choose a scheme without it")
TRANSFORMS = {"fft": Fft, "monarch": Monarch}
_CHUNK = 16  # queries whose pairs are weighed at once


def by_history(supports) -> dict:
    """The table of a mixer whose kernel has no state: a stream reads the inputs that it keeps."""
    def widen(support: Support) -> Support:
        forms = tuple(form for form in ALL if support.forms and form in (*support.forms, STEP))
        missing = {form: why for form, why in support.missing.items() if form != STEP}
        return Support(forms, missing, support.code, support.reason)

    return {lane: widen(support) for lane, support in supports.items()}


class Kernel(Protocol):
    """A causal kernel per channel: `lcx.ops.conv.Modes`, or any other that can say its taps."""

    def taps(self, length: int) -> jax.Array:
        """K(0..length-1) [length,H,K], wide."""

    def run(self, x: jax.Array, **options) -> tuple[jax.Array, jax.Array]:
        """The convolution through a state of fixed size, as `mode_conv` says; if it has one."""

    @property
    def scans(self) -> bool:
        """Whether `run` is quick over a long text."""


@struct.dataclass
class LtiState:
    """memory: modes [B,...,2] wide, or a cache of inputs; conv: the inputs that short convolutions
    still read; last: ids and segment; carry: what the scheme remembers."""

    memory: jax.Array | cache.KeyCache
    conv: ConvState | None
    last: L.Last
    carry: Any


class LtiMixer(Mixer):
    """Shared by mixers whose core is a convolution with a kernel that is the same everywhere.

    transform: the Fourier transform of whole texts, one of TRANSFORMS; a subclass may make it an
    option. finite_state: whether the kernel has a state of fixed size.
    """

    family = "lti"
    supports = SUPPORTS
    transform = "fft"
    finite_state: ClassVar[bool] = True

    @classmethod
    def support(cls, lane: Any, among: L.Lanes | None = None) -> Support:
        if getattr(lane, "content", False) is True:
            return refuses("R1", _CONTENT)
        turning = None if isinstance(lane, type) else _rotation(lane)
        if turning is not None and turning.amplitude is not None:
            return refuses("R1", _AMPLITUDE)
        if among is not None and lane is among.value and _rotation(among.transport) is not None:
            return Support(reason="two rotations of one value: their angles would have to be added")
        return super().support(lane, among)

    def site(self) -> L.Site:
        """Channels in equal heads, each a convolution of its own."""
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        dim = self.width // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    def over_history(self, lanes: L.Lanes) -> bool:
        """Whether a stream under these lanes, in this form, keeps every input.

        Raises Refusal or Unimplemented where the form that was asked for does not exist.
        """
        missing = [form for lane in lanes.values() for form in self.check_form(lane)]
        return not self.finite_state or STEP in missing or self.form == QUADRATIC

    def convolve(self, value: jax.Array, kernel: Kernel, seq: L.Sequence, lanes: L.Lanes,
                 carry: Any, state: LtiState | None) -> tuple[jax.Array, LtiState | None]:
        """Inputs [B,T,H,K] -> y [B,T,H,K] wide, and the next state (its `conv` as it was)."""
        self.sow("intermediates", "inner", dict(value=value,
                                                kernel=kernel.taps(value.shape[1])))
        seq = seq.replace(ids=seq.ids[..., :lanes.axes])
        before = L.nothing_seen(value.shape[0], lanes.axes) if state is None else state.last
        step, starts, last = L.advance(seq, before)
        run = self._over_history if self.over_history(lanes) else self._over_state
        out, memory = run(wide(value), kernel, seq, lanes, step, starts,
                          None if state is None else state.memory)
        self.sow("intermediates", "outer", out)
        if state is not None:
            state = state.replace(memory=memory, last=last, carry=carry)
        return out, state

    def _over_state(self, value, kernel, seq, lanes, step, starts, memory):
        """A Fourier transform where nothing fades and no stream goes on, else a bounded state."""
        turn, (_, length, heads, size) = turned.Turn(_turning(lanes)), value.shape
        inputs, fade = turn.inputs(value, seq.ids), weighed.fade_of(lanes, heads, size)
        wider = jax.tree.map(lambda a: jnp.concatenate([a] * turn.copies), kernel)
        if memory is None and self.form != STEP and (fade is None or not wider.scans):
            if fade is None:
                out = self._transformed(inputs, wider.taps(length), seq, starts)
                return turn.outputs(out, seq.ids), None
            return self._over_history(value, kernel, seq, lanes, step, starts, None)
        options = dict(form="recurrent" if self.form == STEP else "chunked")
        if self.chunk is not None:
            options["chunk"] = self.chunk
        if fade is not None:
            options["log_decay"] = jnp.concatenate([fade] * turn.copies, axis=2)
        out, after = wider.run(inputs, start=starts, state=memory, **options)
        after = None if memory is None else after.astype(memory.dtype)
        return turn.outputs(out, seq.ids), after

    def _over_history(self, value, kernel, seq, lanes, step, starts, memory):
        """The kernel times the lanes' factor: a transform where ids rise evenly, else all pairs."""
        integral = pairs.integrals(lanes, None if memory is None else memory.total)
        keys = pairs.Keys(value[..., :0], value, seq.replace(length=None), integral)
        if memory is not None:
            keys, _, memory = cache.append(memory, keys)
        turn, length = turned.Turn(_turning(lanes)), value.shape[1]

        def by_pairs():
            taps = kernel.taps(keys.value.shape[1])
            return weighed.over_pairs(seq, integral, keys, taps, lanes, turn,
                                      self.chunk or _CHUNK)

        def by_transform():
            taps = kernel.taps(length) * jnp.exp(factor)
            wider = jnp.concatenate([taps] * turn.copies, axis=1)
            out = self._transformed(turn.inputs(value, seq.ids), wider, seq, starts)
            return turn.outputs(out, seq.ids)

        piecewise = isinstance(lanes.transport, L.Piecewise)
        if memory is not None or self.form in (QUADRATIC, STEP) or piecewise:
            return by_pairs(), memory
        even, factor = weighed.even_factor(lanes, step, starts, value.shape[1:])
        if not lanes.bias and not isinstance(lanes.transport, L.Diagonal):
            return by_transform(), None
        return jax.lax.cond(even, by_transform, by_pairs), None

    def _transformed(self, inputs, taps, seq, starts):
        document = None if seq.segment is None else jnp.cumsum(starts, axis=1)
        reach = self.reach()
        if reach is None:
            return long_conv(inputs, taps, document, self._fourier())
        flat = lambda a: a.reshape(*a.shape[:-2], -1)
        near = jnp.pad(taps[:reach], [(0, max(0, reach - taps.shape[0]))] + [(0, 0)] * 2)
        return short_conv(flat(inputs), flat(near[::-1]), segment=document)[0].reshape(inputs.shape)

    def _fourier(self):
        if self.transform not in TRANSFORMS:
            raise ConfigError(f"transform '{self.transform}' of {lookup.file_name(type(self))}"
                              + did_you_mean(self.transform, TRANSFORMS))
        return TRANSFORMS[self.transform]

    def reach(self) -> int | None:
        """Tokens that the kernel reads, where they are few and always the same number."""
        return None

    def empty_state(self, batch: int, max_length: int, modes: int = 0,
                    conv: Any = None) -> LtiState:
        """No token seen: `modes` numbers of two parts per channel, or a cache of inputs (of the
        last `reach` of them)."""
        site, (lanes, carry) = self.site(), self.structure(batch)
        shape = (site.num_heads, site.value_dim)
        if self.over_history(lanes):
            like = cache.like(lanes, batch, site.num_heads, 0, site.value_dim, wide_dtype())
            memory = cache.init(like.replace(path=None, extras=()), batch, max_length,
                                self.reach())
        else:
            copies = turned.Turn(_turning(lanes)).copies
            memory = jnp.zeros((batch, copies * shape[0], shape[1], modes, 2), wide_dtype())
        return LtiState(memory, conv, L.nothing_seen(batch, lanes.axes), carry)


def _rotation(lane) -> L.Rotation | None:
    """The rotation that a lane value is or brings along."""
    if isinstance(lane, (L.Diagonal, L.ValueRotation)):
        return lane.rotation
    return lane if isinstance(lane, L.Rotation) else None


def _turning(lanes: L.Lanes) -> L.Rotation | None:
    """What turns the values: without queries and keys, a rotation of either is one of values."""
    return _rotation(lanes.transport) or _rotation(lanes.value)
