"""The language model: embed, scan a pattern of layers over depth, norm, head."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lookup, mixers, positions
from lcx.errors import ConfigError
from lcx.lanes import Sequence
from lcx.layers import RmsNorm
from lcx.model import ahead, mlps
from lcx.model.layer import MLPS, LayerState, Period
from lcx.ops.loss import cross_entropy
from lcx.sharding import shard
from lcx.types import wide
from lcx.weights import free, matrix

_POLICIES = {
    "none": None,
    "full": "full",
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@struct.dataclass
class ModelState:
    """What a stream remembers: one state per layer of the period, stacked over depth; what shared
    schemes, and what schemes that read the tokens, remember."""

    layers: tuple
    shared: tuple
    reads: tuple = ()


class LanguageModel(nn.Module):
    """A pre-norm decoder over tokens [B,T]; see `lcx.model.build_model` for the config.

    layers: one period of the pattern, scanned depth/len(layers) times. share_position: all layers
    of a place in the pattern read one scheme's parameters (T5), computed once outside the scan.
    predict_ahead: further tokens that training predicts from each state (`lcx.model.ahead`), each
    by a layer of the pattern's last kind; the mean of their losses counts ahead_weight times.
    """

    vocab_size: int
    width: int
    depth: int
    layers: tuple[Any, ...]
    train_length: int
    tie_embeddings: bool = True
    share_position: bool = False
    remat: str = "none"
    dtype: str = "float32"
    predict_ahead: int = 0
    ahead_weight: float = 0.3

    @property
    def output_scale(self) -> float:
        """Each of the 2 x depth residual branches starts this much smaller (GPT-2)."""
        return 1.0 / math.sqrt(2.0 * self.depth)

    @nn.compact
    def __call__(self, inputs: jax.Array, seq: Sequence, state: ModelState | None = None):
        """Logits [B,T,V], wide, and the next state."""
        x, state, head = self._hidden(inputs, seq, state)
        return _logits(x, head), state

    @nn.compact
    def predict(self, inputs: jax.Array, seq: Sequence, state: ModelState | None = None):
        """Logits [B,V] of the token behind the last input, wide, and the next state."""
        x, state, head = self._hidden(inputs, seq, state)
        return _logits(x[:, -1:], head)[:, 0], state

    @nn.compact
    def score(self, inputs: jax.Array, targets: jax.Array, seq: Sequence,
              state: ModelState | None = None):
        """Negative log-likelihood of each target in nats [B,T], wide, and the next state."""
        x, state, head = self._hidden(inputs, seq, state, targets)
        return cross_entropy(x, head, targets), state

    def init_state(self, batch: int, max_length: int) -> ModelState:
        """Buffers for streams of up to `max_length` tokens. For an unbound model."""
        dtype = jnp.dtype(self.dtype)
        one = tuple(LayerState(self._mixer(number).init_state(batch, max_length, dtype),
                               mlps.init_state(self._mlp(number), batch, max_length, dtype))
                    for number in range(len(self.layers)))
        periods = self.depth // len(self.layers)
        stack = lambda a: jnp.broadcast_to(a, (periods, *a.shape))
        shared = tuple(self._scheme(n).init_carry(batch) if self.share_position else ()
                       for n in range(len(self.layers)))
        reads = tuple(self._scheme(n).init_read(batch) for n in self._distinct())
        return ModelState(jax.tree.map(stack, one), shared, reads)

    def data_transform(self) -> positions.DataTransform | None:
        """What the schemes of the pattern do to the text of training, or None.

        Raises ConfigError where two of them disagree: there is one text.
        """
        found = {self._scheme(number).data_transform() for number in self._distinct()} - {None}
        if len(found) > 1:
            raise ConfigError("two schemes of the pattern move the text of training in different "
                              f"ways ({', '.join(sorted(map(repr, found)))}); make them agree")
        return found.pop() if found else None

    def _hidden(self, inputs, seq, state, targets=None):
        init = nn.initializers.normal(1.0 / math.sqrt(self.width))
        shape, names = (self.vocab_size, self.width), ("vocab", "width")
        table = self.param("embedding", free(init, names), shape)
        head = table if self.tie_embeddings else self.param(
            "head", matrix(init, names), shape)
        table = shard(table, "vocab width")  # before the gather, which would replicate it
        x = self._embedded(table, inputs)
        seqs, reads = self._placed(inputs, seq, state)
        for number, layer in enumerate(self._distinct()):
            for embed in positions.make_embed(self.layers[layer]["position"], self.width,
                                              self.train_length, number, self.vocab_size):
                x = embed(x, seqs[layer], inputs)
        x = shard(x, "batch length _")
        shared, carries = self._shared(x, seqs, state)
        x, layers = self._stack(x, None if state is None else state.layers, seqs, shared)
        state = None if state is None else ModelState(layers, carries, reads)
        x = RmsNorm(name="final_norm")(x)
        if self.predict_ahead and (self.is_initializing() or (
                targets is not None and self.is_mutable_collection("further"))):
            self._ahead(x, table, head, inputs, inputs if targets is None else targets, seqs[-1])
        return x, state, head

    def _embedded(self, table, tokens):
        x = table.at[tokens].get(mode="fill", fill_value=jnp.nan)  # no token is ever clamped
        return (x * math.sqrt(self.width)).astype(jnp.dtype(self.dtype))

    def _ahead(self, x, table, head, inputs, targets, seq):
        """Sows the nll [B,T] of the token k after each target, times its share of the loss, for k
        from 1 on; in training alone, which weighs them (`ahead.weights_ahead`)."""
        share = self.ahead_weight / self.predict_ahead
        for steps in range(1, self.predict_ahead + 1):
            embedded = self._embedded(table, ahead.shifted(inputs, steps))
            module = ahead.Ahead(self.layers[-1], self._common(), name=f"ahead_{steps}")
            x, read = module(x, embedded, seq)
            if not self.is_initializing():
                nll = cross_entropy(read, head, ahead.shifted(targets, steps))
                self.sow("further", "nll", share * nll)

    def _common(self):
        return dict(width=self.width, train_length=self.train_length,
                    output_scale=self.output_scale)

    def _stack(self, x, states, seqs, shared):
        periods = self.depth // len(self.layers)
        scan = nn.scan(
            Period, variable_axes={"params": 0, "intermediates": 0, "losses": 0},
            variable_broadcast="numbers", split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast), length=periods,
            metadata_params={nn.PARTITION_NAME: "depth"})
        body = scan(self.layers, self._common(), _POLICIES[self.remat], name="layers")
        (x, _), states = body((x, self._relays(x)), states, seqs, shared)
        return x, states

    def _relays(self, x) -> dict[str, Any]:
        """What layers hand up the depth, by kind of mixer; nothing where a kind has one layer."""
        found, periods = {}, self.depth // len(self.layers)
        made = [self._mixer(number) for number in range(len(self.layers))]
        kinds = [lookup.file_name(type(mixer)) for mixer in made]
        for kind, mixer in zip(kinds, made):
            if found.get(kind) is None:
                found[kind] = mixer.empty_relay(x) if periods * kinds.count(kind) > 1 else None
        return found

    def _placed(self, tokens, seq: Sequence, state) -> tuple[tuple[Sequence, ...], tuple]:
        """The sequence of each place in the pattern, and what reading the tokens remembers; each
        distinct scheme reads them, and draws its ids, once."""
        key = self.make_rng("position") if self.has_rng("position") else None
        done, after = {}, []
        for place, number in enumerate(self._distinct()):
            scheme = self._scheme(number)
            before = scheme.init_read(tokens.shape[0]) if state is None else state.reads[place]
            told, carry = scheme.read(tokens, seq, before)
            name = repr(self.layers[number]["position"])
            done[name] = scheme.remap(told, key).replace(moved=None)
            after.append(carry)
        return tuple(done[repr(layer["position"])] for layer in self.layers), tuple(after)

    def _distinct(self) -> list[int]:
        """The first layer of the pattern under each distinct scheme."""
        names = [repr(layer["position"]) for layer in self.layers]
        return [number for number, name in enumerate(names) if name not in names[:number]]

    def _shared(self, x, seqs, state):
        nothing = (None,) * len(self.layers)
        if not self.share_position:
            return nothing, () if state is None else state.shared
        lanes, carries = [], []
        for number, layer in enumerate(self.layers):
            site = self._mixer(number).site()
            scheme = positions.make(layer["position"], site, name=f"position_{number}")
            if scheme.content:
                raise ConfigError(f"share_position: '{positions.label(layer['position'])}' reads "
                                  "each layer's own input; set share_position=False")
            before = scheme.init_carry(x.shape[0]) if state is None else state.shared[number]
            one, carry = scheme.lanes(x, seqs[number], before)
            lanes.append(one)
            carries.append(carry)
        return tuple(lanes), tuple(carries)

    def _mixer(self, number: int) -> mixers.Mixer:
        layer = self.layers[number]
        return mixers.make(layer["mixer"], position=layer["position"], width=self.width,
                           train_length=self.train_length, output_scale=self.output_scale,
                           parent=None)

    def _mlp(self, number: int) -> nn.Module | None:
        spec = self.layers[number]["mlp"]
        return None if spec is None else lookup.build(MLPS, spec, width=self.width, parent=None)

    def _scheme(self, number: int) -> positions.Position:
        return positions.make(self.layers[number]["position"], self._mixer(number).site(),
                              parent=None)


def _logits(x: jax.Array, head: jax.Array) -> jax.Array:
    logits = jnp.einsum("btd,vd->btv", x, head.astype(x.dtype),
                        preferred_element_type=wide(x[:0]).dtype)
    return shard(logits, "batch length vocab")
