"""What a scheme says: its lane values at parameters drawn at random, in three situations."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx import lookup, mixers, positions
from lcx.errors import ConfigError
from tests.laws.cells import TRAIN_LENGTH, WIDTH, drawn, sequences

SHIFT = 5  # of all ids, times what the scheme is relative for


@dataclasses.dataclass
class Spoken:
    """lanes: of the packed row; other: of another text there; moved: with all ids shifted."""

    scheme: positions.Position
    seq: L.Sequence
    lanes: L.Lanes
    other: L.Lanes
    moved: L.Lanes

    @property
    def starts(self) -> np.ndarray:
        """Which tokens begin a document [T]."""
        return np.diff(np.asarray(self.seq.segment[0]), prepend=-1) != 0

    def values(self):
        """(lane value, of another text, at shifted ids)."""
        return zip(self.lanes.values(), self.other.values(), self.moved.values(), strict=True)


def site(causal: bool = True) -> L.Site:
    mixer = lookup.find(mixers.PACKAGE, "attention")
    made = mixers.make(dict(name="attention", **mixer.examples[0]), position="no_pe", width=WIDTH,
                       train_length=TRAIN_LENGTH, parent=None)
    return dataclasses.replace(made.site(), causal=causal)


def speak(spec, causal: bool = True, change=None) -> Spoken | None:
    """None where the scheme says that it is causal only. change(params) -> params."""
    scheme, (_, seq, _) = positions.make(spec, site(causal), parent=None), sequences(spec)
    random = np.random.default_rng(3)
    texts = [jnp.asarray(random.normal(size=(2, seq.order.shape[1], WIDTH))) for _ in range(2)]
    init = lambda: nn.unbox(scheme.init(jax.random.key(0), texts[0], seq, scheme.init_carry(2),
                                        method="lanes"))
    try:
        found = drawn(init)
    except ConfigError:
        if causal:
            raise
        return None
    if change is not None:
        found = {**found, "params": change(found["params"])}
    say = jax.jit(lambda x, seq: scheme.apply(found, x, seq, scheme.init_carry(2),
                                              method="lanes")[0])
    moved = seq.replace(ids=seq.ids + SHIFT * max(1, scheme.relative))
    return Spoken(scheme, seq, say(texts[0], seq), say(texts[1], seq), say(texts[0], moved))


def tile(seq: L.Sequence, lane: L.Pairwise, where: L.Site = None) -> L.Tile:
    """A tile of all tokens of the packed row, with queries and keys drawn at random."""
    where, random = where or site(), np.random.default_rng(4)
    shape = (2, seq.order.shape[1], where.num_heads, where.key_dim)
    same = seq.segment[..., :, None] == seq.segment[..., None, :]
    mask = same & (seq.order[..., None, :] <= seq.order[..., :, None])
    mask = jnp.broadcast_to(mask, (2, *mask.shape[1:]))
    query, key = (jnp.asarray(random.normal(size=shape)) for _ in range(2))
    ids = jnp.broadcast_to(seq.ids, (2, *seq.ids.shape[1:]))
    return L.Tile(query, key, mask, ids, ids, 0.5, lane.extras, lane.extras)
