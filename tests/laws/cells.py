"""The cells under law: every scheme and mixer that exists, with the examples they declare."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, mixers, positions
from lcx.mixers import matrix
from lcx.positions import listing

WIDTH, LENGTH, TRAIN_LENGTH, BATCH = 32, 29, 16, 2
# The packed row: a document of one token; one that is longer than every window, near piece and
# bucket of every example (test_reach.py holds that); one that begins inside a later chunk.
DOCUMENTS = ((0, 1), (1, 22), (22, 29))
# A piece ends where a document does, and one goes across. Lengths repeat: each is compiled once.
PIECES = ((0, 1), (1, 8), (8, 15), (15, 16), (16, 23), *((n, n + 1) for n in range(23, LENGTH)))

# Compositions that published models use, and one in which a basis meets a bias of raw keys, beside
# the single schemes that enrol themselves.
STACKS = (["path", "fox"], ["randomized", "rope"], ["rope", "log_n"], ["fox", "t5_bias"],
          ["rope", "alibi"], ["hyperbolic_hope", "shaw"])


def name_of(spec) -> str:
    """A test id: "rope(fraction=0.5)"."""
    words = []
    for part in positions.parts(spec):
        options = ",".join(f"{k}={v}" for k, v in part.items() if k != "name")
        words.append(part["name"] + (f"({options})" if options else ""))
    return "+".join(words)


def specs(package: str) -> list[dict]:
    """Every component of a package with each of its examples."""
    return [dict(name=name, **example) for name in lookup.names(package)
            for example in lookup.find(package, name).examples]


def grid(*statuses: str, today=None, also=()) -> list:
    """Test parameters (position, mixer) for the cells of the wanted statuses.

    Each run takes the cells of `today`; the rest of the product stands behind the marker
    `full`: first examples with one another, every example of a scheme with a mixer of each family,
    every example of a mixer with one scheme of each kind of lanes. also: further pairs.
    """
    today = today or everyday
    stacks = [list(s) for s in STACKS
              if all(p["name"] in lookup.names(positions.PACKAGE) for p in positions.parts(s))]
    pairs = [(position, mixer) for position in [*specs(positions.PACKAGE), *stacks]
             for mixer in specs(mixers.PACKAGE) if _in_product(position, mixer)]
    found = {}
    for position, mixer in [*also, *pairs]:
        if record(position, mixer)["status"] in statuses:
            marks = () if today(position, mixer) else (pytest.mark.full,)
            name = f"{name_of(position)}-{name_of(mixer)}"
            found.setdefault(name, pytest.param(position, mixer, id=name, marks=marks))
    return list(found.values())


def _first(package: str, spec: dict) -> bool:
    example = lookup.find(package, spec["name"]).examples[0]
    return {k: v for k, v in spec.items() if k != "name"} == example


def _in_product(position, mixer) -> bool:
    if _first(mixers.PACKAGE, mixer):
        return (isinstance(position, list) or _first(positions.PACKAGE, position)
                or leads(mixer))
    return position == {"name": "rope", **lookup.find(positions.PACKAGE, "rope").examples[0]} \
        or represents(position)


def everyday(position, mixer) -> bool:
    """Every scheme with attention; each other mixer meets a rotation with all biases that it
    honours, the leader of a family the other transports too."""
    if not _first(mixers.PACKAGE, mixer):
        return False
    if mixer["name"] == "attention":
        return isinstance(position, list) or _first(positions.PACKAGE, position)
    stacks = together(mixer)
    return position in (stacks if leads(mixer) else stacks[:1])


TRANSPORTS = ("Rotation", "Householder", "Diagonal", "Piecewise")
BIASES = ("Separable", "EventuallyConstant", "Toeplitz", "Rowwise", "Pairwise", "Temperature")


def plain(mixer) -> list[str]:
    """A rotation and gates, as far as the mixer honours them: the lanes of a bounded state."""
    return [*_honoured(mixer, "Rotation"), *_honoured(mixer, "Separable")] or ["no_pe"]


def together(mixer) -> list[list[str]]:
    """Every structural class that the mixer honours, in as few cells as hold them: each transport
    in a stack of its own, all biases and the temperature beside the first."""
    transports = [name for lane in TRANSPORTS for name in _honoured(mixer, lane)[:1]]
    biases = [name for lane in BIASES for name in _honoured(mixer, lane)]
    stacks = [[*transports[:1], *biases], *([name] for name in transports[1:])]
    return [stack for stack in stacks if stack]


def _honoured(mixer, lane) -> list[str]:
    """The representatives of a lane alone that the mixer takes, what reads the content first."""
    names = [_representatives().get(((lane,), content)) for content in (True, False)]
    return [name for name in names
            if name and record({"name": name}, mixer)["status"] in ("native", "partial")]


def leads(mixer, among: int = 1) -> bool:
    """Whether a mixer stands for its family, of `among` mixers at least: it honours most lanes."""
    return _leaders().get(mixer["name"], 0) >= among


@functools.cache
def _leaders() -> dict[str, int]:
    families = {}
    for name in lookup.names(mixers.PACKAGE):
        cls = lookup.find(mixers.PACKAGE, name)
        known = sum(bool(support.forms) + (support.status == "native")
                    for support in cls.supports.values())
        families.setdefault(cls.family, []).append((known, name))
    return {max(found, key=lambda entry: entry[0])[1]: len(found) for found in families.values()}


def rings() -> list[str]:
    """The representatives whose far pairs a recurrence keeps in one state."""
    return [_representatives()[(lane,), False]
            for lane in ("Piecewise", "EventuallyConstant", "Toeplitz")]


def in_layers(name: str) -> bool:
    """Whether a scheme says anything to a layer, or nothing at all: its input lane and id map do
    not meet the mixer."""
    return set(listing.record(name)["lanes"]).isdisjoint({"embed", "remap"})


def represents(position) -> bool:
    """Whether a scheme stands for all that speak in the same lanes, in its first example."""
    if isinstance(position, list) or not _first(positions.PACKAGE, position):
        return False
    return flagged(position["name"])


def flagged(name: str) -> bool:
    """Whether a scheme's own class, not one that it inherits from, says that it represents."""
    return vars(lookup.find(positions.PACKAGE, name)).get("represents", False)


def kind(name: str) -> tuple[tuple[str, ...], bool]:
    """What a scheme speaks in: the names of its lanes, and whether they read the content."""
    return tuple(listing.record(name)["lanes"]), lookup.find(positions.PACKAGE, name).content


@functools.cache
def _representatives() -> dict[tuple[tuple[str, ...], bool], str]:
    return {kind(name): name for name in lookup.names(positions.PACKAGE) if flagged(name)}


_RECORDS = {}


def record(position, mixer) -> dict:
    """The cell's entry of the matrix, at the size of the tests."""
    key = repr((position, mixer))
    if key not in _RECORDS:
        _RECORDS[key] = matrix.cell(position, mixer, width=WIDTH, train_length=TRAIN_LENGTH)
    return _RECORDS[key]


class Block(nn.Module):
    """What a scheme and a mixer are to a model: ids moved, input embedded, tokens mixed."""

    position: object
    mixer: object
    form: str = "auto"

    def make(self, **kwargs):
        # chunks of 8 tokens, so that 24 of them make several
        spec = {**self.mixer, "form": self.form, "chunk": 8}
        return mixers.make(spec, position=self.position, width=WIDTH, train_length=TRAIN_LENGTH,
                           **kwargs)

    @nn.compact
    def __call__(self, x, seq, state=None):
        mixer = self.make(name="mixer")
        seq = positions.make(self.position, mixer.site(), parent=None).remap(seq)
        for embed in positions.make_embed(self.position, WIDTH, TRAIN_LENGTH * 4):
            x = embed(x, seq)
        return mixer(x, seq, state)


@functools.cache
def axes_of(position_name: str) -> int:
    """How many axes the ids of a scheme have."""
    scheme = positions.make(position_name, L.Site(2, 2, 16, 16, 32, 16, value_dim=16),
                            parent=None)
    return mixers.lane_shapes(scheme, 32).axes


def sequences(position) -> tuple[L.Sequence, L.Sequence, list[L.Sequence]]:
    """One document of the whole length, the packed row, and its documents on their own: the first
    two without segments, the last with."""
    segment = np.concatenate([np.full(b - a, n + 1) for n, (a, b) in enumerate(DOCUMENTS)])
    axes = max(axes_of(part["name"]) for part in positions.parts(position))

    def ids(index):  # an axis of its own each, all of them uneven
        index = np.asarray(index, float)
        return np.stack([index, index // 3, index % 3][:axes], -1)[None]

    packed_index = np.concatenate([np.arange(b - a) for a, b in DOCUMENTS])
    told = LENGTH
    whole = L.sequence(1, LENGTH, ids=ids(np.arange(LENGTH)), told_length=told)
    packed = L.sequence(1, LENGTH, segment=segment[None], ids=ids(packed_index), told_length=told)
    alone = [L.sequence(1, b - a, ids=ids(np.arange(b - a)), told_length=told,
                        segment=np.ones((1, b - a), int) if (a, b) == DOCUMENTS[-1] else None)
             for a, b in DOCUMENTS]
    return whole, packed, alone


def inputs(seed: int = 0):
    """Layer inputs [B,T,D]."""
    return jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, WIDTH))


def variables(block: Block, seq: L.Sequence, x=None):
    """Variables drawn at random, so that no zero table or gate hides a lane.

    Only the numbers of the schemes are computed: running the initialisers op by op would take
    most of the suite's time.
    """
    x = inputs() if x is None else x
    return drawn(lambda: nn.unbox(block.init(jax.random.key(1), x, seq)))


def drawn(init):
    """The variables that init() would give, with parameters drawn at random."""
    shapes = jax.eval_shape(init)
    random = np.random.default_rng(2)

    def draw(path, leaf):
        fan_in = leaf.shape[0] if len(leaf.shape) > 1 else 4
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(around + random.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    found = {"params": jax.tree_util.tree_map_with_path(draw, shapes.get("params", {}))}
    if "numbers" in shapes:
        found["numbers"] = jax.jit(lambda: init()["numbers"])()
    return found


def stream(block: Block, found, *requests, pieces=PIECES) -> list:
    """The outputs of requests (x, seq), each to a fresh state: the first arrives in pieces, a
    further one, as long as a piece, at once."""
    empty = jax.jit(lambda: block.make(parent=None).init_state(BATCH, LENGTH))()
    apply, answers = jax.jit(block.apply), []
    for number, (x, seq) in enumerate(requests):
        state, outputs = empty, []
        for a, b in pieces if number == 0 else [(0, x.shape[1])]:
            y, state = apply(found, x[:, a:b], seq[a:b], state)
            outputs.append(y)
        answers.append(jnp.concatenate(outputs, 1))
    return answers
