"""The documents of the laws reach past every window, near piece and bucket of every example.

A law of short documents says nothing about what begins further out. Distances are read off the lane
values, so a new scheme or mixer is enrolled by existing; where this fails, give its first example a
smaller window, or the laws a longer document (`DOCUMENTS` in cells.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers, positions
from tests.laws.cells import DOCUMENTS, TRAIN_LENGTH, WIDTH, kind, name_of, specs
from tests.laws.spoken import speak

FARTHEST = max(b - a for a, b in DOCUMENTS) - 1  # distance within one document
LONGER = f"the longest document of the laws reaches to distance {FARTHEST}, "
MIXER_SIZES = ("window", "block", "stride", "group", "chunk")


@pytest.mark.parametrize("spec", specs(positions.PACKAGE), ids=name_of)
def test_documents_reach_every_piece_and_bucket(spec, x64):
    said = speak(spec)
    ids = jnp.arange(FARTHEST + 1.0)
    past = np.tri(FARTHEST + 1, dtype=bool)
    for lane in said.lanes.values():
        if isinstance(lane, (L.Piecewise, L.EventuallyConstant)) and lane.window is not None:
            assert lane.window <= FARTHEST, LONGER + f"the window is {lane.window}"
        if isinstance(lane, L.Piecewise):
            met = set(np.asarray(lane.select(lane.params, ids[:, None], ids[None]))[past])
            missing = set(range(len(lane.pieces))) - met
            assert not missing, LONGER + f"where pieces {missing} are never met"
        if isinstance(lane, L.ValueTable):
            rows = lane.table.shape[0]
            missing = set(range(rows)) - set(np.asarray(lane.bucket(rows, ids)))
            assert not missing, LONGER + f"where rows {missing} are never read"


# A row bias interpolates: its numbers are of functions (FIRE's units), not rows of a table.
WITH_BIAS = [spec for spec in specs(positions.PACKAGE)
             if set(kind(spec["name"])[0]) & {"Toeplitz", "EventuallyConstant", "Pairwise"}]


@pytest.mark.parametrize("spec", WITH_BIAS, ids=name_of)
def test_documents_reach_every_number_of_a_bias(spec, x64):
    """No row of a table is read at larger distances only, by a bias of ids or of counts."""
    said = speak(spec)
    for lane in said.lanes.bias:
        assert isinstance(lane, (L.Pairwise, L.Toeplitz))
        near, far = (_read(lane, length, said.scheme.site) for length in (FARTHEST + 1, 150))
        for path, leaf in jax.tree_util.tree_leaves_with_path(far):
            missing = np.argwhere(np.asarray(leaf) & ~np.asarray(at(near, path)))
            assert not missing.size, LONGER + f"{len(missing)} numbers of {path} are read farther"


def _read(lane, length, site):
    """Which numbers of a bias change it somewhere in a document of so many tokens."""
    ids, random = jnp.arange(float(length)), np.random.default_rng(4)
    distance = ids[:, None] - ids
    past = np.tri(length, dtype=bool)

    def run(params):
        if isinstance(lane, L.Pairwise):
            token = lambda *shape: jnp.asarray(random.normal(size=(1, length, *shape)))
            extras = jax.tree.map(lambda a: token(*a.shape[2:]), lane.extras)
            query, key = (token(site.num_heads, site.key_dim) for _ in range(2))
            places = jnp.repeat(ids[None, :, None], lane.axes, -1)
            full = L.Tile(query, key, jnp.asarray(past)[None], places, places, 0.5, extras, extras)
            bias = jnp.moveaxis(lane.kernel(params, full)[0], 0, -1)
        else:
            bias = lane.kernel(params, distance)
        bias = jnp.broadcast_to(bias, (length, length, bias.shape[-1]))
        return jnp.sum(jnp.where(past[..., None], bias, 0.0) * random.normal(size=bias.shape))

    return jax.tree.map(lambda slope: np.asarray(slope) != 0, jax.jit(jax.grad(run))(lane.params))


def at(tree, path):
    """The leaf of a tree at a path."""
    return dict(jax.tree_util.tree_leaves_with_path(tree))[path]


@pytest.mark.parametrize("spec", specs(mixers.PACKAGE), ids=name_of)
def test_documents_reach_past_the_windows_of_mixers(spec):
    made = mixers.make(spec, position="no_pe", width=WIDTH, train_length=TRAIN_LENGTH, parent=None)
    for field in dataclasses.fields(made):
        size = getattr(made, field.name)
        if field.name in MIXER_SIZES and size is not None:
            assert size < FARTHEST, LONGER + f"{field.name} is {size}"
