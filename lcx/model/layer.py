"""One layer and one period of layers: pre-norm residual blocks around a mixer and an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from lcx import lookup, mixers
from lcx.layers import RmsNorm
from lcx.model import mlps
from lcx.sharding import shard

MLPS = mlps.__name__


@struct.dataclass
class LayerState:
    """What a stream remembers in one layer; mlp is None where each token is on its own."""

    mixer: Any
    mlp: Any = None


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); [B,T,D] -> [B,T,D] and the next state.

    mixer, position, mlp: component specs; mlp None leaves the second half out. relays: what layers
    below hand to those of their kind (`Mixer.relayed`), by kind; returned as this layer leaves it.
    """

    mixer: Any
    position: Any
    mlp: Any
    width: int
    train_length: int
    output_scale: float

    @nn.compact
    def __call__(self, x: jax.Array, seq, state: Any, shared: Any, relays: Mapping[str, Any]
                 ) -> tuple[jax.Array, Any, Mapping[str, Any]]:
        mixer = mixers.make(self.mixer, position=self.position, width=self.width,
                            train_length=self.train_length, output_scale=self.output_scale,
                            name="mixer")
        # Channels stay whole between the parts of a layer, forwards and backwards: left free, XLA
        # split them by a mixer's own heads and, on a mesh over both fsdp and tensor, got it wrong.
        seen = shard(RmsNorm(name="mixer_norm")(x), "batch length width")
        kind = lookup.file_name(type(mixer))
        past = LayerState(None) if state is None else state
        y, mixed, relay = mixer.relayed(seen, seq, past.mixer, shared, relays.get(kind))
        x, after = shard(x + y, "batch length width"), None
        if self.mlp is not None:
            mlp = lookup.build(MLPS, self.mlp, width=self.width, output_scale=self.output_scale,
                               name="mlp")
            y, after = mlps.run(mlp, RmsNorm(name="mlp_norm")(x), seq, past.mlp)
            x = shard(x + y, "batch length width")
        state = None if state is None else LayerState(mixed, after)
        return x, state, {**relays, kind: relay}


class Period(nn.Module):
    """The layers of one period of the pattern; the body of the scan over depth."""

    layers: tuple[Any, ...]  # of dict(mixer=, position=, mlp=)
    common: Any  # width, train_length and output_scale of every layer
    policy: Any = None  # a checkpoint policy, "full" to keep nothing, None to keep everything

    @nn.compact
    def __call__(self, carry: tuple, states: Any, seqs: tuple, shared: tuple):
        (x, relays), cls = carry, Layer
        if self.policy is not None:
            policy = None if self.policy == "full" else self.policy
            cls = nn.remat(Layer, policy=policy, prevent_cse=False)
        after = []
        for number, options in enumerate(self.layers):
            layer = cls(**options, **self.common, name=f"layer_{number}")
            x, state, relays = layer(x, seqs[number], None if states is None else states[number],
                                     shared[number], relays)
            after.append(state)
        return (x, relays), tuple(after)
