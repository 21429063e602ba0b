"""What a lane value's type claims, held to the claim itself: every example of every scheme.

A mixer believes the type: a bias that says it is constant from a distance on is summed into one
state from there, and no law of a short document would see that it is not.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, positions
from tests.laws.cells import flagged, kind, name_of, specs
from tests.laws.spoken import SHIFT, Spoken, site, speak, tile

FAR = np.concatenate([np.arange(300.0), [1e3, 1e4, 1e6]])  # ids and distances


def same(a, b, words):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=words)


def alike(a, b) -> bool:
    """Whether two trees hold the same numbers."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def whole_turns(angle):
    return np.asarray(angle) / (2 * np.pi)


# ---- one function for each type: (value, the same of another text, at shifted ids, Spoken) ------


def rotation(lane: L.Rotation, other, moved, said: Spoken, channels=None):
    """Static, for pairs that there are, and a group: the angle of a sum is the sum of angles."""
    pairs = lane.frequency.shape[-1]
    assert lane.frequency.shape == (3, pairs)
    assert 2 * pairs <= (channels or said.scheme.site.rotary_dim)
    assert lane.axis is None or len(lane.axis) == pairs
    assert lane.amplitude is None or np.shape(lane.amplitude) == () and lane.amplitude > 0
    assert alike(lane, other), "a rotation reads no text"
    assert not said.scheme.relative or alike(lane, moved), "a relative one reads no ids"
    axes = 1 if lane.axis is None else max(lane.axis) + 1
    ids = np.stack([FAR, FAR[::-1], np.sqrt(FAR)][:axes], -1)[None]
    step = L.phase(lane, ids + 7.0) - L.phase(lane, ids) - L.phase(lane, np.full_like(ids, 7.0))
    turns = whole_turns(step)
    same(turns, np.round(turns), "the angle of a step depends on where it is taken")


def content_rotation(lane: L.ContentRotation, other, moved, said):
    """Steps are the differences of phases, and none leads into a document."""
    step, phase = np.asarray(lane.step), np.asarray(lane.phase)
    assert not step[:, said.starts].any(), "a step into a document"
    off = whole_turns(np.diff(phase, axis=1) - step[:, 1:])[:, ~said.starts[1:]]
    np.testing.assert_allclose(off, np.round(off), atol=1e-7, err_msg="phase and step disagree")
    if said.scheme.relative:
        same(step, moved.step, "steps depend on where ids begin")


def householder(lane: L.Householder, other, moved, said):
    """Unit vectors, 0 < beta < 2, so that each map is a reflection or less."""
    length = np.linalg.norm(lane.vector, axis=-1)  # the floor of a norm is no fault
    np.testing.assert_allclose(length, 1.0, atol=1e-5, err_msg="a vector that is no unit vector")
    assert (lane.beta > 0).all() and (lane.beta < 2).all()
    assert lane.vector.shape[:3] == lane.beta.shape
    assert lane.vector.shape[-1] <= said.scheme.site.rotary_dim
    assert lane.beta.shape[2] == said.scheme.site.num_kv_heads


def piecewise(lane: L.Piecewise, other, moved, said):
    """Every piece is met, all pairs from `window` on are far, and from no smaller distance."""
    rotation(lane.rotation, other.rotation, moved.rotation, said)
    assert alike(lane.params, other.params)
    ids = jnp.arange(3.0 * (lane.window or 20) + 40)
    piece, step = _pieces(lane, ids)
    distance = np.subtract.outer(ids, ids)
    past = distance >= 0 if said.scheme.site.causal else np.full(distance.shape, True)
    assert set(piece[past]) == set(range(len(lane.pieces))), "a piece that no pair takes"
    if lane.window is not None:
        assert (piece[distance >= lane.window] == lane.far).all(), "near beyond the window"
        assert (piece[distance == lane.window - 1] != lane.far).any(), "a window larger than needed"
    relative = int(said.scheme.relative)
    if relative:
        for one, two in zip((piece, step), _pieces(lane, ids + SHIFT * relative)):
            same(one[past], two[past], f"depends on where ids begin, by multiples of {relative}")
    if relative > 1:
        assert not all(np.array_equal(one[past], two[past]) for one, two in zip(
            (piece, step), _pieces(lane, ids + 1))), "relative for any shift, but says a multiple"


def _pieces(lane, ids):
    """The piece of each pair of ids [T], and the difference of ids that it turns by."""
    piece = np.asarray(lane.select(lane.params, ids[:, None], ids[None]))
    step = np.zeros(piece.shape)
    for number, (query_map, key_map) in enumerate(lane.pieces):
        here = np.subtract.outer(query_map(lane.params, ids), key_map(lane.params, ids))
        step = np.where(piece == number, here, step)
    return piece, step


def diagonal(lane: L.Diagonal, other, moved, said):
    """As `separable`; pairs that turn fade alike, and a basis keeps lengths and angles."""
    _increments(lane, other, moved, said)
    increment = np.asarray(lane.increment)
    assert increment.shape[2] in (1, said.scheme.site.num_kv_heads)
    assert increment.shape[-1] <= said.scheme.site.rotary_dim
    if lane.rotation is not None:
        rotation(lane.rotation, other.rotation, moved.rotation, said)
        pairs = lane.rotation.frequency.shape[-1]
        fades = increment[..., : 2 * pairs]
        first, second = ((fades[..., 0::2], fades[..., 1::2]) if lane.rotation.interleaved
                         else np.split(fades, 2, -1))
        same(first, second, "the channels of a pair fade unlike")
    if lane.basis is not None:
        matrix = np.asarray(lane.basis(jnp.eye(increment.shape[-1])))
        same(matrix @ matrix.T, np.eye(len(matrix)), "the basis is not orthogonal")


def separable(lane: L.Separable, other, moved, said):
    """Gates of each head that only fall, none into a document; `content` says what they read."""
    _increments(lane, other, moved, said)
    assert lane.increment.shape[2] == said.scheme.site.num_heads


def _increments(lane, other, moved, said):
    increment = np.asarray(lane.increment)
    assert (increment <= 0).all(), "a gate that rises"
    assert not increment[:, said.starts].any(), "a gate that falls into a document"
    assert increment[:, ~said.starts].any(), "a gate that never falls"
    assert lane.content != alike(lane, other), "`content` does not say what the gate reads"
    if said.scheme.relative:
        same(increment, moved.increment, "depends on where ids begin")


def toeplitz(lane: L.Toeplitz, other, moved, said):
    """Of the distance alone: of no text, no ids, no shape; finite at any distance."""
    assert alike(lane.params, other.params), "a static bias reads no text"
    assert alike(lane.params, moved.params), "a Toeplitz bias reads no ids"
    row = np.asarray(lane.kernel(lane.params, FAR))
    assert row.shape == (len(FAR), said.scheme.site.num_heads) and np.isfinite(row).all()
    same(lane.kernel(lane.params, FAR[3:5, None])[:, 0], row[3:5], "depends on the other pairs")


def eventually_constant(lane: L.EventuallyConstant, other, moved, said):
    """Constant from `window` on, and from no smaller distance."""
    toeplitz(lane, other, moved, said)
    ends = [1] if said.scheme.site.causal else [1, -1]
    for side in ends:
        kernel = lambda distance, side=side: np.asarray(lane.kernel(lane.params, side * distance))
        beyond = lane.window + np.concatenate([FAR, [0.5]])
        same(kernel(beyond), kernel(np.full_like(beyond, lane.window)), "no constant")
        assert (kernel(np.array([lane.window - 1.0])) != kernel(np.array([float(lane.window)]))
                ).any(), "constant from a smaller distance on: a ring would hold too much"


def rowwise(lane: L.Rowwise, other, moved, said):
    """Of distance and query id alone."""
    assert alike(lane.params, other.params), "a static bias reads no text"
    assert alike(lane.params, moved.params), "a row bias reads ids in its kernel only"
    distance = FAR[:, None] - FAR
    square = np.asarray(lane.kernel(lane.params, distance, FAR[:, None]))
    assert square.shape == (*distance.shape, said.scheme.site.num_heads)
    past = distance >= 0
    assert np.isfinite(square[past]).all()
    pick = (np.array([5, 40, 299]), np.array([0, 7, 250]))
    some = lane.kernel(lane.params, distance[pick], FAR[pick[0]])
    same(some, square[pick], "depends on the other pairs")


def pairwise(lane: L.Pairwise, other, moved, said):
    """An entry is of its own query and key; with `row_global`, of its row of keys; of `axes`."""
    full = tile(said.seq, lane)
    whole = np.asarray(lane.kernel(lane.params, full))
    batch, length, heads = full.query.shape[:3]
    assert np.broadcast_shapes(whole.shape, (batch, heads, length, length)) == (
        batch, heads, length, length)
    rows, keys = slice(9, 20), slice(4, 17)
    some = lane.kernel(lane.params, _part(full, rows, slice(None)))
    same(some, whole[:, :, rows], "depends on the other queries")
    some = np.asarray(lane.kernel(lane.params, _part(full, slice(None), keys)))
    seen = np.broadcast_to(np.asarray(full.mask)[:, None], whole.shape)[..., keys]
    alone = np.allclose(some[seen], whole[..., keys][seen], rtol=1e-9, atol=1e-9)
    assert alone != lane.row_global, "`row_global` does not say what an entry depends on"
    fewer = full.replace(query_ids=full.query_ids[..., : lane.axes],
                         key_ids=full.key_ids[..., : lane.axes])
    further = lambda ids: jnp.concatenate([ids[..., : lane.axes], 3 * ids[..., :1] ** 2], -1)
    more = full.replace(query_ids=further(full.query_ids), key_ids=further(full.key_ids))
    same(lane.kernel(lane.params, more), lane.kernel(lane.params, fewer), "reads further axes")
    if lane.axes > 1:
        uneven = full.replace(key_ids=full.key_ids.at[..., lane.axes - 1].add(1.0))
        assert not np.allclose(lane.kernel(lane.params, uneven), whole), "reads fewer axes"


def _part(full: L.Tile, rows, keys) -> L.Tile:
    cut = lambda tree, where: jax.tree.map(lambda a: a[:, where], tree)
    return L.Tile(full.query[:, rows], full.key[:, keys], full.mask[:, rows, keys],
                  full.query_ids[:, rows], full.key_ids[:, keys], full.scale,
                  cut(full.query_extras, rows), cut(full.key_extras, keys))


def feature_map(lane: L.FeatureMap, other, moved, said):
    """Of each token and its ids alone, to one width; relative products where the scheme is."""
    assert alike(lane.params, other.params), "a feature map reads no other text"
    random, where = np.random.default_rng(5), said.scheme.site
    ids = said.seq.ids
    x, y = random.normal(size=(2, 2, ids.shape[1], where.num_kv_heads, where.rotary_dim))
    order = random.permutation(ids.shape[1])
    for side in (lane.query, lane.key):
        new = np.asarray(side(lane.params, x, ids))
        assert new.shape[:3] == x.shape[:3]
        same(side(lane.params, x[:, order], ids[:, order]), new[:, order], "reads other tokens")
    product = lambda params, ids: jnp.einsum("bthk,bshk->bhts", lane.query(params, x, ids),
                                             lane.key(params, y, ids))
    if said.scheme.relative:
        shift = SHIFT * int(said.scheme.relative)
        same(product(moved.params, ids + shift), product(lane.params, ids),
             "products depend on where ids begin")


def temperature(lane: L.Temperature, other, moved, said):
    """One factor of each query, or of its heads."""
    factor = np.asarray(lane.factor)
    assert factor.shape[1:] in [(len(said.starts), n) for n in (1, said.scheme.site.num_heads)]
    assert np.isfinite(factor).all()
    if said.scheme.relative:
        same(factor, moved.factor, "depends on where ids begin")


def value_rotation(lane: L.ValueRotation, other, moved, said):
    """A rotation of channels that values have."""
    rotation(lane.rotation, other.rotation, moved.rotation, said, said.scheme.site.value_dim)


def value_table(lane: L.ValueTable, other, moved, said):
    """Every row is of some distance, and every distance of some row."""
    rows = lane.table.shape[0]
    assert lane.table.shape[1] == said.scheme.site.value_dim
    distance = np.concatenate([-FAR[::-1], FAR]) if not said.scheme.site.causal else FAR
    found = np.asarray(lane.bucket(rows, distance))
    assert np.issubdtype(found.dtype, np.integer)
    assert set(found) == set(range(rows)), "rows outside the table, or rows never read"
    assert alike(lane, other) and alike(lane, moved)


def logit_map(lane: L.LogitMap, other, moved, said):
    """Of one row of keys, of those that it sees."""
    where = said.scheme.site
    mask = np.asarray(tile(said.seq, L.Pairwise(None, None)).mask)
    random = np.random.default_rng(6)
    shape = (2, where.num_heads, *mask.shape[1:])
    logits, bias = np.where(mask[:, None], random.normal(size=(2, *shape)), 0.0)
    distance = np.asarray(said.seq.ids[..., :, None, 0] - said.seq.ids[..., None, :, 0])
    run = lambda logits: np.asarray(lane.function(lane.params, logits, bias, mask, distance))
    seen, wanted = np.broadcast_to(mask[:, None], shape), run(logits)
    assert wanted.shape == shape
    same(run(np.where(seen, logits, 3.0))[seen], wanted[seen], "reads what a mask hides")
    again = logits.copy()
    again[:, :, 11] = random.normal(size=again[:, :, 11].shape)
    others = seen.copy()
    others[:, :, 11] = False
    same(run(again)[others], wanted[others], "reads other queries")


CLAIMS = {
    L.Rotation: rotation, L.ContentRotation: content_rotation, L.Householder: householder,
    L.Piecewise: piecewise, L.Diagonal: diagonal, L.FeatureMap: feature_map,
    L.Separable: separable, L.Toeplitz: toeplitz, L.EventuallyConstant: eventually_constant,
    L.Rowwise: rowwise, L.Pairwise: pairwise, L.Temperature: temperature,
    L.ValueRotation: value_rotation, L.ValueTable: value_table, L.LogitMap: logit_map,
}


@pytest.mark.parametrize("spec", specs(positions.PACKAGE), ids=name_of)
def test_lane_values_are_what_their_types_claim(spec, x64):
    said = speak(spec)
    for value, other, moved in said.values():
        CLAIMS[type(value)](value, other, moved, said)
    assert said.scheme.content != alike(said.lanes, said.other), \
        "`content` of the scheme does not say whether its lanes read the text"


TWO_SIDED = [spec for spec in specs(positions.PACKAGE) if any(
    lane in ("Piecewise", "Toeplitz", "EventuallyConstant", "ValueTable", "Temperature",
             "Separable", "Pairwise") for lane in kind(spec["name"])[0])]


@pytest.mark.parametrize("spec", TWO_SIDED, ids=name_of)
def test_so_they_are_where_the_future_is_seen(spec, x64):
    said = speak(spec, causal=False)
    for value, other, moved in said.values() if said else ():
        CLAIMS[type(value)](value, other, moved, said)


def test_temperatures_are_positive_where_there_is_a_choice(x64):
    """At their start, and as soon as a query sees more than itself."""
    for spec in specs(positions.PACKAGE):
        if "Temperature" in kind(spec["name"])[0]:
            said = speak(spec, change=_initial(spec))
            factor = np.asarray(said.lanes.temperature.factor)
            assert (factor >= 0).all() and (factor[:, ~said.starts] > 0).all(), name_of(spec)


def _initial(spec):
    """A change of parameters to those that a scheme starts from."""
    scheme = positions.make(spec, site(), parent=None)
    seq = L.sequence(1, 2)
    return lambda _: nn.unbox(scheme.init(
        jax.random.key(0), jnp.zeros((1, 2, site().width)), seq, scheme.init_carry(1),
        method="lanes")).get("params", {})


def test_every_kind_of_lanes_has_one_representative():
    """The schemes that meet all mixers in each run say so themselves."""
    kinds = {}
    for name in lookup.names(positions.PACKAGE):
        kinds.setdefault(kind(name), []).append(name)
    for (lanes, content), names in kinds.items():
        chosen = [name for name in names if flagged(name)]
        words = f"that say {', '.join(lanes) or 'nothing'}" + " of the content" * content
        assert len(chosen) == 1, (
            f"of the schemes {words} ({', '.join(names)}) {chosen or 'none'} have "
            "`represents = True` in their own class: exactly one is to meet every kind of mixer")


def test_every_type_of_lane_has_claims():
    types = {kind for kind in vars(L).values() if isinstance(kind, type)
             and kind.__module__ == L.__name__} - {L.Site, L.Tile, L.Lanes}
    assert types == set(CLAIMS), "write what the new type claims, and hold schemes to it"
