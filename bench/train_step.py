"""Tokens per second and MFU of a whole training step, one GPU: `python bench/train_step.py`.

The model is the 124M GPT that everyone measures (12 x 768, vocabulary 50304, bfloat16), trained by
the same program as `lcx train` on random tokens. Prints one JSON object per length. MFU counts the
matrix products of the model three times (forward, backward; attention at half the square) against
the dense bfloat16 peak of --peak.
"""

from __future__ import annotations

import argparse
import json
import logging
import time

import jax
import numpy as np

from lcx import sharding
from lcx.config import base_config
from lcx.model import build_model
from lcx.train.program import build_program

LADDER = ((1024, 32), (8192, 4), (32768, 1))


def measure(length: int, rows: int, options: argparse.Namespace) -> dict:
    """Median seconds of a step after warm-up, and what follows from it."""
    config = base_config()
    model = config.experiment.model
    model.width, model.depth, model.vocab_size = options.width, options.depth, 50304
    model.position, model.dtype, model.remat = options.position, "bfloat16", options.remat
    model.mixer = dict(name=options.mixer, num_heads=options.width // 64)
    model.mlp = "plain"
    config.experiment.data.train_length, config.experiment.data.batch_size = length, rows
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        program = build_program(config, build_model(model, length), mesh)
        state, constants = program.init(), program.constants()
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        tokens = np.random.default_rng(0).integers(0, 50304, (rows, length + 1), dtype=np.int32)
        batch = program.place(dict(inputs=tokens[:, :-1], targets=tokens[:, 1:],
                                   weights=np.ones((rows, length), np.float32)))
        seconds = []
        for _ in range(options.steps):
            began = time.perf_counter()
            state, metrics = program.step(state, constants, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - began)
    step = float(np.median(seconds[3:]))
    attention = 2 * 2 * options.width * length / 2 * options.depth  # q k and w v, causal half
    flops = 3 * (2 * parameters + attention)
    rate = rows * length / step
    return dict(length=length, rows=rows, parameters=parameters, mixer=options.mixer,
                position=options.position, remat=options.remat, first_step=round(seconds[0], 2),
                step=round(step, 5), tokens_per_second=round(rate),
                mfu=round(rate * flops / (options.peak * 1e12), 4), loss=float(metrics["loss"]),
                peak_gib=round(_peak_bytes() / 2**30, 2), device=jax.devices()[0].device_kind)


def _peak_bytes() -> int:
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--position", default="rope")
    parser.add_argument("--mixer", default="attention")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--lengths", type=int, nargs="*", default=[n for n, _ in LADDER])
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s, dense bfloat16")
    options = parser.parse_args()
    logging.basicConfig(force=True, level=logging.INFO, format="%(name)s: %(message)s")
    for length, rows in LADDER:
        if length in options.lengths:
            print(json.dumps(measure(length, rows, options)), flush=True)


if __name__ == "__main__":
    main()
