"""Mesh axes and logical axis rules: the only file that names a mesh axis.

Arrays are described by *logical* axes ("batch length width"); one table, `RULES`, says over which
mesh axes each is split. An unknown name raises: a misspelt one would otherwise replicate silently.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lcx.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)

MESH_AXES = ("data", "fsdp", "tensor")


class Rule(NamedTuple):
    """Mesh axes of one logical axis in an activation and in a weight, and if it must divide."""

    activation: tuple[str, ...] = ()
    weight: tuple[str, ...] = ()
    strict: bool = False  # an axis that does not divide raises instead of being replicated


_SPLIT = Rule(("tensor",), ("tensor",))
_WHOLE = Rule()

RULES: dict[str, Rule] = {
    "batch": Rule(activation=("data", "fsdp")),
    "length": _WHOLE,  # T: query tokens (the sequence axis of the mesh will go here)
    "keys": _WHOLE,  # S: key tokens, cache slots
    "width": Rule(weight=("fsdp",)),  # D: fully sharded weights are gathered where they are used
    "heads": Rule(("tensor",), ("tensor",), strict=True),
    "kv_heads": _SPLIT,  # apart from heads: replicated and logged where it does not divide
    "head_dim": _WHOLE,
    "value_dim": _WHOLE,
    "mlp": _SPLIT,
    "channels": _SPLIT,  # inner width of recurrences and convolutions
    "vocab": _SPLIT,
    "depth": _WHOLE,  # scanned layers
    "state": _WHOLE,
    "rank": Rule(weight=("fsdp",)),  # low-rank bottlenecks (MLA latents, gate projections)
    "features": _WHOLE,  # feature maps
    "expert": Rule(weight=("tensor",)),  # `over_experts` sends each token to where they lie
    "kernel": _WHOLE,  # convolution taps
    "positions": _WHOLE,  # rows of a learned position table
    "buckets": _WHOLE,  # rows of a relative-distance table
    "axes": _WHOLE,  # A: axes of a position id
}
LOGICAL_AXES = tuple(RULES)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with Auto axes over `devices` (all of them by default).

    One size may be -1 and takes the devices that are left. Raises ConfigError where the sizes do
    not divide the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(zip(MESH_AXES, (data, fsdp, tensor)))
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if any(s == 0 or s < -1 for s in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise ConfigError(f"mesh({shown}): sizes are positive, and at most one is -1 (the rest)")
    known = math.prod(s for s in sizes.values() if s != -1)
    if len(devices) % known:
        raise ConfigError(
            f"mesh({shown}) needs a multiple of {known} devices but there are {len(devices)}; "
            "set config.runtime.mesh so that data x fsdp x tensor divides the devices"
        )
    sizes = {axis: len(devices) // known if s == -1 else s for axis, s in sizes.items()}
    used = math.prod(sizes.values())
    if used < len(devices):
        if jax.process_count() > 1:
            raise ConfigError(
                f"mesh({shown}) uses {used} of {len(devices)} devices, and some process would "
                "have none; set one axis to -1"
            )
        log.warning("mesh(%s) uses %d of %d devices", shown, used, len(devices))
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=auto, devices=devices[:used]
    )


def shard(x: jax.Array, names: str) -> jax.Array:
    """Constrain an activation by its logical axes: `shard(x, "batch length width")`.

    `_` leaves an axis to the compiler. Without a mesh and inside `shard_map` it returns x.
    Raises ValueError on an unknown name or a wrong rank, with or without a mesh.
    """
    axes = tuple(None if n == "_" else n for n in names.split())
    _check(axes, x.shape, f"shard(x, {names!r})")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(t != AxisType.Auto for t in mesh.axis_types):
        return x
    spec = _spec(axes, x.shape, tuple(mesh.shape.items()), False)
    free = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(*(free if name is None else part for name, part in zip(axes, spec)))
    return jax.lax.with_sharding_constraint(x, spec)


def shardings(variables: Any, mesh: Mesh) -> Any:
    """Shardings of variables whose leaves carry logical names (`lcx.weights`).

    `variables` may be abstract; a leaf without names is replicated. The result has the structure
    of the unboxed variables. Raises ValueError on an unknown name or a wrong rank, and ConfigError
    where `heads` does not divide over the mesh: both before anything compiles.
    """
    sizes = tuple(mesh.shape.items())

    def one(path, leaf):
        if not is_boxed(leaf):
            return NamedSharding(mesh, PartitionSpec())
        names = tuple(leaf.names)
        _check(names, leaf.value.shape, "variable " + jax.tree_util.keystr(path))
        return NamedSharding(mesh, PartitionSpec(*_spec(names, leaf.value.shape, sizes, True)))

    return jax.tree_util.tree_map_with_path(one, variables, is_leaf=is_boxed)


def over_experts(function: Callable, rows: Any, weights: Any) -> jax.Array:
    """function(first, rows, weights) of each device's own tokens and experts, summed over experts.

    rows: pytree of [B,...]; weights: pytree of [E,...] with the experts first; first: number of
    the first expert that the function is given. Its result [B,...] is a sum over experts. Without
    a mesh, inside `shard_map` and where E does not divide, it is given all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(t != AxisType.Auto for t in mesh.axis_types):
        return function(0, rows, weights)
    sizes = tuple(mesh.shape.items())
    length = lambda tree: jax.tree.leaves(tree)[0].shape[:1]
    batch, = _spec(("batch",), length(rows), sizes, False)
    experts, = _spec(("expert",), length(weights), sizes, True)

    def body(rows, weights):
        if experts is None:
            return function(0, rows, weights)
        first = jax.lax.axis_index(experts) * length(weights)[0]
        # Said, for a gather by indices that vary would forget to sum the gradient of what it reads.
        rows = jax.tree.map(lambda x: jax.lax.pcast(x, experts, to="varying"), rows)
        return jax.lax.psum(function(first, rows, weights), experts)

    return jax.shard_map(body, in_specs=(PartitionSpec(batch), PartitionSpec(experts)),
                         out_specs=PartitionSpec(batch))(rows, weights)


def is_boxed(leaf: Any) -> bool:
    """Whether a leaf carries logical axis names."""
    return isinstance(leaf, meta.Partitioned)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch [B, ...] lies on the mesh: its first axis over every axis that holds data."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"].activation))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"].activation)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _check(axes: Sequence[str | None], shape: Sequence[int], where: str) -> None:
    for name in axes:
        if name is not None and name not in RULES:
            raise ValueError(f"{where}: unknown logical axis '{name}'" + did_you_mean(name, RULES))
    if len(axes) != len(shape):
        raise ValueError(f"{where}: {len(axes)} names for an array of shape {tuple(shape)}")


def _spec(axes, shape, sizes, weight: bool) -> list[tuple[str, ...] | str | None]:
    """Mesh axes per dimension; each mesh axis is used once, by the leftmost name that wants it."""
    sizes, taken, spec = dict(sizes), set(), []
    for name, length in zip(axes, shape):
        rule = RULES[name] if name is not None else _WHOLE
        wanted = [a for a in (rule.weight if weight else rule.activation)
                  if a in sizes and a not in taken]
        while wanted and length % math.prod(sizes[a] for a in wanted):
            _indivisible(name, length, tuple((a, sizes[a]) for a in wanted), rule.strict)
            wanted.pop()
        taken.update(wanted)
        spec.append(tuple(wanted) if len(wanted) > 1 else wanted[0] if wanted else None)
    return spec


@functools.cache  # once per fact: traces and leaves repeat it
def _indivisible(name: str, length: int, wanted: tuple[tuple[str, int], ...], strict: bool):
    axes = " x ".join(f"{axis}={size}" for axis, size in wanted)
    if strict:
        raise ConfigError(
            f"the mesh axis {axes} does not divide {length} {name}; "
            f"choose a mesh that does, or another number of {name}"
        )
    log.warning("mesh axis %s does not divide %d %s: replicated over it", axes, length, name)
