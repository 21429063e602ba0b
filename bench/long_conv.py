"""How long a convolution as long as its input takes: by FFT, and by dense Fourier matrices.

    python bench/long_conv.py [--channels 768] [--samples 65536] [--lengths 512 2048 8192 32768]

Prints a Markdown table: milliseconds of the value and of both gradients (best of 3 x 10 calls,
compiled), temporary memory, and the largest difference from the FFT relative to the output.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

from lcx.ops.conv import Fft, Monarch, long_conv


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--samples", type=int, default=65536, help="tokens of a batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, float32, "
          f"{args.samples} tokens of {args.channels} channels\n")
    print("| length | transform | value (ms) | gradients (ms) | memory (MiB) | difference |")
    print("|---|---|---|---|---|---|")
    for length in args.lengths:
        batch = max(1, args.samples // length)
        x = jax.random.normal(jax.random.key(0), (batch, length, args.channels))
        kernel = jax.random.normal(jax.random.key(1), (length, args.channels)) / length**0.5
        reference = None
        for name, transform in (("FFT", Fft), ("Monarch", Monarch)):
            run = jax.jit(lambda x, k, transform=transform: long_conv(x, k, None, transform))
            loss = lambda x, k, run=run: jnp.sum(jnp.sin(run(x, k)))
            slopes = jax.jit(jax.grad(loss, (0, 1)))
            out = run(x, kernel)
            reference = out if reference is None else reference
            error = jnp.abs(out - reference).max() / jnp.abs(reference).max()
            memory = run.lower(x, kernel).compile().memory_analysis().temp_size_in_bytes / 2**20
            print(f"| {length} | {name} | {milliseconds(run, x, kernel):.2f} | "
                  f"{milliseconds(slopes, x, kernel):.2f} | {memory:.0f} | {error:.1e} |",
                  flush=True)


def milliseconds(run, *operands, calls: int = 10) -> float:
    """Time of one call: the best of three averages."""
    times = []
    jax.block_until_ready(run(*operands))
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(calls):
            out = run(*operands)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - begin) / calls)
    return 1e3 * min(times)


if __name__ == "__main__":
    main()
