"""What lanes say to an element-wise recurrence: turns of values, weights and angles of pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.ops.scan.ring import Pair
from lcx.types import wide


def static_biases(lanes: L.Lanes) -> tuple:
    """Biases that are functions of ids alone."""
    return tuple(bias for bias in lanes.bias if isinstance(bias, (L.Toeplitz, L.Rowwise)))


def rotation_of(lane) -> L.Rotation | L.ContentRotation | None:
    """The rotation that a lane value is or brings along."""
    if isinstance(lane, (L.Diagonal, L.ValueRotation)):
        return lane.rotation
    return lane if isinstance(lane, (L.Rotation, L.ContentRotation)) else None


def turning(lanes: L.Lanes) -> L.Rotation | L.ContentRotation | None:
    """What turns the values: without queries and keys, a rotation of either is one of values."""
    if isinstance(lanes.transport, L.Piecewise):
        return lanes.transport.rotation
    return rotation_of(lanes.transport) or rotation_of(lanes.value)


def turn_of(lanes: L.Lanes, seq: L.Sequence, step: jax.Array) -> jax.Array | None:
    """Radians [.,T,.,P] by which each token turns what came (long) before it.

    A query at i would see u_j turned back by id_i - id_j, hence the sign.
    """
    rotation = turning(lanes)
    if rotation is None:
        return None
    if isinstance(rotation, L.ContentRotation):
        return -wide(rotation.step)
    if not isinstance(lanes.transport, L.Piecewise):
        return -L.phase(rotation, step)[:, :, None]
    (move, _), params = lanes.transport.pieces[lanes.transport.far], lanes.transport.params
    ids = ids_read(seq, lanes)
    now, before = (L.phase(rotation, move(params, a)) for a in (ids, ids - step))
    return (before - now)[:, :, None]


def ids_read(seq: L.Sequence, lanes: L.Lanes) -> jax.Array:
    """The axes [.,T,A] of the ids that the lanes read."""
    ids = seq.ids[..., :lanes.axes]
    return jnp.broadcast_to(ids, (*ids.shape[:-1], lanes.axes))


def pair_of(lanes: L.Lanes) -> Pair:
    """Angle, weight and end of change of a pair of ids under these lanes."""
    static, pieces = static_biases(lanes), lanes.transport

    def weight(reader, ids):
        distance, total = reader[..., 0] - ids[..., 0], 0.0
        for bias in static:
            more = (reader[..., 0],) if isinstance(bias, L.Rowwise) else ()
            total = total + wide(bias.kernel(bias.params, distance, *more))
        return total

    def angle(reader, ids):
        number = pieces.select(pieces.params, reader[..., 0], ids[..., 0])[..., None]
        phase, total = lambda ids: L.phase(pieces.rotation, ids), 0.0
        for n, (of_reader, of_input) in enumerate(pieces.pieces):
            apart = (phase(of_input(pieces.params, ids))
                     - phase(of_reader(pieces.params, reader)))
            total = jnp.where(number == n, apart, total)
        return total

    def far(reader, ids):
        distance = reader[..., 0] - ids[..., 0]
        settled = jnp.ones(distance.shape, bool)
        for bias in static:
            settled &= distance >= getattr(bias, "window", jnp.inf)
        if isinstance(pieces, L.Piecewise):
            number = pieces.select(pieces.params, reader[..., 0], ids[..., 0])
            settled &= (number == pieces.far) & (distance >= (pieces.window or jnp.inf))
        return settled

    ends = sum((wide(bias.kernel(bias.params, wide(float(bias.window)))) for bias in static
                if isinstance(bias, L.EventuallyConstant)), 0.0)
    rotation = turning(lanes)
    return Pair(angle if isinstance(pieces, L.Piecewise) else None, weight if static else None,
                far, ends, rotation is not None and rotation.interleaved)
