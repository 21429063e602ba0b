"""FLOPs and temporary memory of every mixer by length, from compiled programs; nothing is run.

`python bench/mixers_cost.py` writes docs/mixers_cost.csv; then `lcx mixers --page docs` puts it on
the page; with names behind it, their rows alone are made anew. The chunked form where the mixer
has one, one row, float32, no scheme, the forward pass. FLOPs are those of matrix products, loops
counted through (XLA's own count takes a loop's body once; it stands beside, as xla_flops). One
process per mixer, --jobs at a time; one that runs out of --timeout or fails leaves its cells empty.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

LENGTHS = (1024, 8192, 65536)
# Rows of their own: windows, which the defaults leave out or make as long as the text.
FURTHER = ("attention(window=256)", "streaming_attention(window=256)",
           "sink_attention(window=128)", "stick_breaking(window=256)")
FIELDS = ("mixer", "form", "width", "length", "flops", "xla_flops", "temporary_bytes", "error")


def measure(row: str, length: int, width: int) -> dict:
    """Compile one layer by shape and ask for its plan. row: a mixer, or mixer(option=number)."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from lcx import lookup, mixers
    from lcx.lanes import sequence
    from lcx.ops.attention import api as attention
    from lcx.study import flops

    name, _, words = row.rstrip(")").partition("(")
    options = {key: int(value) for key, value in (word.split("=") for word in words.split(",")
                                                  if word)}
    cls = lookup.find(mixers.PACKAGE, name)
    form = "chunked" if "chunked" in cls.forms else "auto"
    layer = mixers.make(dict(name=name, form=form, **options), position="no_pe", width=width,
                        train_length=length, parent=None)
    x = jax.ShapeDtypeStruct((1, length, width), jnp.float32)

    def run(variables, x):
        return layer.apply(variables, x, sequence(1, length))[0]

    with attention.backend("chunked"):
        variables = nn.unbox(jax.eval_shape(
            lambda key, x: layer.init(key, x, sequence(1, length)), jax.random.key(0), x))
        variables.pop("intermediates", None)
        compiled = jax.jit(run).lower(variables, x).compile()
        counted = flops.count(run, variables, x)
    memory, told = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return dict(mixer=row, form=form, width=width, length=length, flops=counted,
                xla_flops=int(told.get("flops", 0)),
                temporary_bytes=memory.temp_size_in_bytes if memory else "", error="")


def apart(name: str, length: int, options: argparse.Namespace) -> dict:
    """The measurement in a process of its own."""
    empty = dict.fromkeys(FIELDS, "") | dict(mixer=name, width=options.width, length=length)
    words = [sys.executable, __file__, "--one", name, str(length), "--width", str(options.width)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return empty | dict(error=f"longer than {options.timeout:g} s")
    if done.returncode:
        return empty | dict(error=(done.stderr.strip().splitlines() or ["killed"])[-1][:200])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mixers", nargs="*", help="rows to make anew; all if there are none")
    parser.add_argument("--out", default="docs/mixers_cost.csv")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=240)
    parser.add_argument("--one", nargs=2, metavar=("MIXER", "LENGTH"), help="print one as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.width)))
        return
    from lcx.study.mixers_page import names_in_order

    names = [row for name in names_in_order() for row in (
        name, *(further for further in FURTHER if further.startswith(name + "(")))]
    cells = [(name, length) for name in options.mixers or names for length in LENGTHS]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda cell: apart(*cell, options), cells))
    if options.mixers:
        with open(options.out, newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["mixer"] not in options.mixers]
        place = {name: number for number, name in enumerate(names)}
        rows.sort(key=lambda row: (place.get(row["mixer"], len(place)), int(row["length"])))
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        if row["error"]:
            print(f"{row['mixer']} at {row['length']}: {row['error']}", file=sys.stderr)
    print(options.out)


if __name__ == "__main__":
    main()
