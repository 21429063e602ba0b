"""Sequence mixers: one file each, found by its name.

A mixer subclasses `Mixer`: it names the lane types that its algebra has a meaning for (`supports`),
builds its scheme, and consumes the lanes. One path serves training, prefill and decoding:
`mixer(x, seq, state) -> (y, state)`, with state None in training.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lookup, positions
from lcx.domains import Count
from lcx.errors import ConfigError, Refusal, Unimplemented, did_you_mean
from lcx.lanes import Diagonal, FeatureMap, Lanes, Sequence, Site, sequence
from lcx.types import wide_dtype

PACKAGE = "lcx.mixers"
log = logging.getLogger("lcx.mixers")

QUADRATIC, CHUNKED, STEP = "quadratic", "chunked", "step"


@dataclasses.dataclass(frozen=True)
class Support:
    """What a mixer does with one lane type.

    forms: the forms that honour it; missing: why each other form does not ("R2 ..." where the
    algebra refuses that form, else what is yet to be written); code and reason: of a refusal
    (no forms) or of a note (R4 no-op, R6 absorbed). No forms and no code: unimplemented.
    """

    forms: tuple[str, ...] = ()
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    code: str | None = None
    reason: str = ""

    @property
    def status(self) -> str:
        """native, partial, refused or unimplemented."""
        if not self.forms:
            return "refused" if self.code else "unimplemented"
        return "partial" if self.missing else "native"


def refuses(code: str, reason: str) -> Support:
    """The algebra gives this lane no meaning."""
    return Support(code=code, reason=reason)


class Mixer(nn.Module):
    """A sequence mixer [B,T,D] -> [B,T,D]. Fields of a subclass are its options in a config.

    position: spec of the scheme; width: D; train_length: L; output_scale: factor on the initial
    output projection (depth-scaled init); form: "auto", or one of `forms` to force it; chunk:
    tokens at once in chunked forms, which changes speed and memory but no result.
    """

    position: Any
    width: int
    train_length: int
    output_scale: float = 1.0
    form: str = "auto"
    chunk: Count | None = None

    family: ClassVar[str] = ""  # of the algebra: softmax linear delta diagonal nonlinear
    examples: ClassVar[tuple[dict, ...]] = ({},)  # option sets that the contract tests enrol
    paper: ClassVar[str] = ""
    forms: ClassVar[tuple[str, ...]] = (QUADRATIC, CHUNKED, STEP)
    supports: ClassVar[Mapping[type, Support]] = {}

    def site(self) -> Site:
        """What this mixer tells its scheme."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        """Mix tokens x [B,T,D]; `state` continues a stream; `shared` lanes replace the scheme's."""
        raise NotImplementedError

    def empty_relay(self, x: jax.Array) -> Any:
        """What layers of this kind hand up the depth of a model, before the first of them: arrays
        of the tokens x [B,T,D] of one call, which no stream keeps; None: nothing. Unbound."""
        return None

    def relayed(self, x: jax.Array, seq: Sequence, state: Any = None, shared: Lanes | None = None,
                relay: Any = None) -> tuple[jax.Array, Any, Any]:
        """`__call__`, told what the layers of its kind below hand on; returns what it hands on."""
        return *self(x, seq, state, shared), relay

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        """Fixed buffers for a stream of up to `max_length` tokens. For an unbound module."""
        raise NotImplementedError

    def state_size(self, length: int) -> int:
        """Numbers that a stream must remember after `length` tokens (floating leaves)."""
        leaves = jax.tree.leaves(jax.eval_shape(lambda: self.init_state(1, length)))
        return sum(leaf.size for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))

    def __post_init__(self):
        if self.form not in ("auto", *self.forms):
            raise ConfigError(f"form '{self.form}' of {lookup.file_name(type(self))}"
                              + did_you_mean(self.form, ("auto", *self.forms)))
        super().__post_init__()

    def see(self, x: jax.Array, seq: Sequence, carry: Any = None,
            shared: Lanes | None = None) -> tuple[Lanes, Any]:
        """The lanes of this layer, checked against `supports`, and the scheme's next carry."""
        if shared is None:
            scheme = positions.make(self.position, self.site(), name="position")
            carry = scheme.init_carry(x.shape[0]) if carry is None else carry
            shared, carry = scheme.lanes(x, seq, carry)
        bind(type(self), shared)
        self.sow("intermediates", "lanes", shared)
        return shared, carry

    @classmethod
    def support(cls, lane: Any, among: Lanes | None = None) -> Support:
        """The entry for a lane value or type, or for the nearest type that it specialises.

        among: the lanes that it comes with, for a mixer that cannot honour some of them together.
        """
        if isinstance(lane, Diagonal) and lane.basis is not None:  # a map of queries and keys, too
            mapped = cls.supports.get(FeatureMap, Support())
            if mapped.code == "R1":
                return mapped
        for kind in (lane if isinstance(lane, type) else type(lane)).__mro__:
            if kind in cls.supports:
                return cls.supports[kind]
        return Support(reason="the mixer's table has no entry for this lane type")

    def check_form(self, lane: Any, among: Lanes | None = None) -> Mapping[str, str]:
        """The forms that a lane lacks here. Raises where one of them was asked for by name."""
        missing = self.support(lane, among).missing
        if self.form in missing:
            code, reason = missing[self.form].split(" ", 1)
            name = f"{lookup.file_name(type(self))} in its {self.form} form"
            if code.startswith("R"):
                raise Refusal(type(lane).__name__, name, code, reason)
            raise Unimplemented(type(lane).__name__, name, reason)
        return missing

    def structure(self, batch: int = 1) -> tuple[Lanes, Any]:
        """Shapes of the lanes for one token, and a fresh carry. For an unbound module."""
        scheme = positions.make(self.position, self.site(), parent=None)
        carry = scheme.init_carry(batch)
        return lane_shapes(scheme, self.width, batch), carry


def lane_shapes(scheme: positions.Position, width: int, batch: int = 1, length: int = 1) -> Lanes:
    """Shapes and types of a scheme's lanes, without running it."""
    return _lane_shapes(scheme, width, batch, length, wide_dtype())


@functools.cache
def _lane_shapes(scheme, width, batch, length, dtype):
    def run(key, x):
        carry = scheme.init_carry(batch)
        out, _ = scheme.init_with_output(key, x, sequence(1, length), carry, method="lanes")
        return out[0]

    return jax.eval_shape(run, jax.random.key(0), jnp.zeros((batch, length, width)))


def bind(mixer: type[Mixer], lanes: Lanes) -> list[str]:
    """Check that a mixer honours every lane; returns the recorded notes.

    Raises Refusal or Unimplemented, while the program is still being traced.
    """
    name, notes = lookup.file_name(mixer), []
    for value in lanes.values():
        support, lane = mixer.support(value, lanes), type(value).__name__
        if support.status == "refused":
            raise Refusal(lane, name, support.code, support.reason)
        if support.status == "unimplemented":
            raise Unimplemented(lane, name, support.reason or "no code consumes it")
        if support.code:
            notes.append(f"{lane} on {name}: {support.code} {support.reason}")
    for note in notes:
        log.info(note)
    return notes


def make(spec: Any, **injected) -> Mixer:
    """The mixer of a config: a name or dict(name=..., ...)."""
    return lookup.build(PACKAGE, spec, **injected)
