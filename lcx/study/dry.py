"""What a run would be, before it is: parameters, mesh, memory and FLOPs of the compiled step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lcx import sharding
from lcx.config import resolve, run_id
from lcx.ops.attention import api as attention
from lcx.study import flops
from lcx.study.preflight import check, check_reach, model_of, use_compile_cache, with_data
from lcx.study.run_folder import folder_of
from lcx.train.manifest import flat
from lcx.train.program import build_program

MEMORY = ("argument", "output", "temp", "alias", "generated_code")


def dry_run(config: ConfigDict) -> dict[str, Any]:
    """Check, build and compile the training step of a config; nothing of the run is written.

    memory: bytes per device of the compiled step, as XLA plans them; None where the platform does
    not say. flops_per_token: of the matrix products of one step, backward pass and recomputation
    included. parameters: by module, as `module_table` makes it. Raises what a run would raise.
    """
    check(config)
    use_compile_cache(config)
    full, data = with_data(config)
    check_reach(data, full)
    mesh = sharding.make_mesh(**full.runtime.mesh)
    with jax.set_mesh(mesh), attention.backend(full.runtime.backend):
        model = model_of(full)
        program = build_program(full, model, mesh)
        batch = program.place(next(data.train_batches(model.data_transform())))
        constants = program.constants()
        step = program.step.lower(program.abstract, constants, batch).compile()
        work = flops.count(program.step, program.abstract, constants, batch)
    tokens = full.experiment.data.batch_size * full.experiment.data.train_length
    names = flat({"params": program.abstract.params})
    return dict(
        run=run_id(config), folder=str(folder_of(config)), config=resolve(config),
        vocab_size=full.experiment.model.vocab_size, mesh=dict(mesh.shape),
        devices=mesh.devices.size, device=mesh.devices.flat[0].device_kind,
        parameters=module_table(names), memory=_memory(step), flops_per_token=work // tokens,
        tokens_per_step=tokens, tokens=tokens * full.experiment.train.steps)


def module_table(leaves: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record per parameter with its share of a device, and one for the whole."""
    found = [dict(name=name.removeprefix("params."), shape=list(leaf.shape), count=leaf.size,
                  bytes_per_device=_bytes(leaf)) for name, leaf in leaves.items()]
    return [*found, dict(name="all", shape=[], count=sum(r["count"] for r in found),
                         bytes_per_device=sum(r["bytes_per_device"] for r in found))]


def text(told: Mapping[str, Any]) -> str:
    """For a terminal, after the config."""
    rows = [("parameter", "shape", "count", "MB/device")]
    rows += [(r["name"], "x".join(map(str, r["shape"])), f"{r['count']:,}",
              f"{r['bytes_per_device'] / 1e6:,.2f}") for r in told["parameters"]]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.rjust(w) if i else cell.ljust(w)
                       for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    memory = told["memory"]
    shown = "not told by this platform" if memory is None else ", ".join(
        f"{name} {size / 1e6:,.1f} MB" for name, size in memory.items())
    sizes = ", ".join(f"{axis}={size}" for axis, size in told["mesh"].items())
    return "\n".join([
        *lines, "",
        f"mesh             {sizes}: {told['devices']} x {told['device']}",
        f"memory/device    {shown}",
        f"FLOPs/token      {told['flops_per_token']:,} in training",
        f"tokens           {told['tokens']:,}, {told['tokens_per_step']:,} a step",
        f"run              {told['folder']} (nothing was written there)"])


def _bytes(leaf: Any) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize


def _memory(step: Any) -> dict[str, int] | None:
    """Bytes per device; peak: what is live at once, the donated state counted once."""
    found = step.memory_analysis()
    if found is None:
        return None
    sizes = {name: int(getattr(found, f"{name}_size_in_bytes")) for name in MEMORY}
    peak = (sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"]
            + sizes["generated_code"])
    return {"peak": peak, "state and batch": sizes["argument"], "temporary": sizes["temp"]}
