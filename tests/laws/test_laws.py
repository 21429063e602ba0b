"""The laws of composition, on every cell of the grid that is native or partial.

Law 1 all forms agree, with each other and with a dense float64 oracle; 2 the identity; 3 shift;
4 causality; 5 packing; 6 refusals; 7 no read outside a buffer; 8 every honoured lane is live.
New schemes and mixers are enrolled by existing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup, mixers, positions
from lcx.errors import Refusal, Unimplemented
from tests.laws import oracle
from tests.laws.cells import (
    BATCH,
    DOCUMENTS,
    PIECES,
    Block,
    everyday,
    grid,
    inputs,
    leads,
    name_of,
    plain,
    record,
    represents,
    rings,
    sequences,
    specs,
    stream,
    together,
    variables,
)

FIRST = [dict(name=name, **lookup.find(mixers.PACKAGE, name).examples[0])
         for name in lookup.names(mixers.PACKAGE)]
ATTENTION = next(mixer for mixer in FIRST if mixer["name"] == "attention")
TOGETHER = [(stack, mixer) for mixer in FIRST for stack in together(mixer)]
LARGE = 5  # mixers of a family whose leader stands for its code on each run
ALIVE = grid("native", "partial", also=TOGETHER)


def _forms_today(position, mixer) -> bool:
    """A rotation and a gate on every mixer; on the leaders every stack, and what has a ring."""
    if mixer not in FIRST:
        return False
    if isinstance(position, list):
        return position == plain(mixer) or leads(mixer, LARGE) and position in together(mixer)
    return leads(mixer, LARGE) and position["name"] in rings()


CLASSES = grid("native", "partial", also=[*TOGETHER, *((plain(m), m) for m in FIRST)],
               today=_forms_today)
SLOPES = [pytest.param(plain(m), m, id=f"{name_of(plain(m))}-{name_of(m)}",
                       marks=() if leads(m, LARGE) else pytest.mark.full) for m in FIRST]
ALIVE_LANES = grid("native", "partial", also=TOGETHER, today=lambda position, mixer:
                   mixer == ATTENTION and everyday(position, mixer)
                   or leads(mixer, LARGE) and mixer in FIRST and position == together(mixer)[0])


def close(actual, wanted, tolerance, law):
    """Relative to the scale of the output."""
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert np.isfinite(actual).all(), f"{law}: not finite"
    error = np.abs(actual - wanted).max() / max(1e-6, np.abs(wanted).max())
    assert error < tolerance, f"{law}: relative error {error:.2e} >= {tolerance}"


def forms_of(position, mixer):
    """Whole-sequence forms that the cell has (a step is a stream of single tokens)."""
    return [form for form in record(position, mixer)["forms"] if form != mixers.STEP] or ["auto"]


def same_documents(position, mixer, tolerance):
    """Laws 1 and 5: forms, pieces and documents alone give one answer on the packed row."""
    whole, packed, alone = sequences(position)
    forms, x = forms_of(position, mixer), inputs()
    found = variables(Block(position, mixer), packed)

    blocks = {form: Block(position, mixer, form) for form in forms}
    first = blocks[forms[0]]
    outputs = jax.jit(lambda found, x: {
        form: block.apply(found, x, packed)[0] for form, block in blocks.items()})(found, x)
    last = x[:, slice(*DOCUMENTS[-1])]
    pieces, last = stream(first, found, (x, packed), (last, alone[-1]))
    long = jax.jit(first.apply)(found, x[:, slice(*DOCUMENTS[1])], alone[1])[0]
    wanted = outputs[forms[0]]
    for form in forms[1:]:
        close(outputs[form], wanted, tolerance, f"law 1: {form} = {forms[0]}")
    close(pieces, wanted, tolerance, f"law 1: pieces {PIECES} = whole")
    close(long, wanted[:, slice(*DOCUMENTS[1])], tolerance, "law 5: packed = a document alone")
    close(last, wanted[:, slice(*DOCUMENTS[-1])], tolerance, "law 5: packed = a document alone")


@pytest.mark.parametrize("position,mixer", CLASSES)
def test_forms_pieces_and_packing_agree_in_float32(position, mixer):
    same_documents(position, mixer, 1e-4)


@pytest.mark.parametrize("position,mixer", SLOPES)
def test_gradients_of_all_forms_agree(position, mixer, x64):
    """Law 1 for slopes: the input's and every parameter's, after a whole packed row."""
    _, packed, _ = sequences(position)
    x, found = inputs(), variables(Block(position, mixer), sequences(position)[1])
    rest = {k: v for k, v in found.items() if k != "params"}

    def slope(form):
        loss = lambda params, x: jnp.sum(jnp.sin(3 * Block(position, mixer, form).apply(
            {"params": params, **rest}, x, packed)[0]))
        return jax.grad(loss, (0, 1))

    forms = list(record(position, mixer)["forms"])
    slopes = jax.jit(lambda params, x: [slope(form)(params, x) for form in forms])(
        found["params"], x)
    for form, other in zip(forms[1:], slopes[1:]):
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(slopes[0]), strict=True):
            close(a, b, 1e-7, f"law 1: slope of {form} = slope of {forms[0]}")


@pytest.mark.parametrize("position,mixer", ALIVE)
def test_laws_in_float64(position, mixer, x64):
    whole, packed, _ = sequences(position)
    whole = whole.replace(segment=jnp.ones_like(packed.segment))  # one program for both
    block, x = Block(position, mixer, forms_of(position, mixer)[0]), inputs()
    found = variables(block, packed)

    def run(found, x, seq):
        return block.apply(found, x, seq, mutable=["intermediates"])

    run = jax.jit(run)
    (y, _), seen = run(found, x, packed)
    seen = seen["intermediates"]["mixer"]
    lanes = seen["lanes"][0]

    # Law 1: the oracle, from captured inputs and lane values alone.
    family = lookup.find(mixers.PACKAGE, mixer["name"]).family
    moved = positions.make(position, block.make(parent=None).site(), parent=None).remap(packed)
    for inner, outer in zip(seen["inner"], seen["outer"], strict=True):
        wanted = oracle.core(family, inner, lanes, moved)
        close(outer, wanted, 1e-9, "law 1: oracle")

    # Law 3: ids move together, nothing changes, where the scheme claims to be relative (a number
    # says: for shifts by its multiples). An exception must be real where all keys are seen.
    scheme = positions.make(position, block.make(parent=None).site(), parent=None)
    moved = packed.replace(ids=packed.ids + 5.0 * max(1, scheme.relative))
    shifted = run(found, x, moved)[0][0]
    if scheme.relative:
        close(shifted, y, 1e-9, "law 3: shift of all ids")
    elif mixer == ATTENTION and not isinstance(scheme, positions.compose.Stack):
        assert np.abs(shifted - y).max() > 1e-6, "law 3: declared exception is not real"

    # Law 4: tokens from 13 on change, outputs before 13 do not.
    later = x.at[:, 13:].set(inputs(seed=7)[:, 13:])
    changed = run(found, later, whole)[0][0]
    close(changed[:, :13], run(found, x, whole)[0][0][:, :13], 1e-13, "law 4: causality")


@pytest.mark.parametrize("position,mixer", ALIVE_LANES)
def test_an_honoured_lane_moves_the_output_and_learns(position, mixer, x64):
    """Law 8: unless it is a recorded no-op; every parameter of the scheme gets a gradient."""
    _, packed, _ = sequences(position)
    block, x = Block(position, mixer, forms_of(position, mixer)[0]), inputs()
    found = variables(block, packed)
    notes = record(position, mixer)["notes"]
    lanes, _ = block.make(parent=None).structure()
    honoured = [v for v in lanes.values() if not any(
        note.startswith(type(v).__name__) and "R4" in note for note in notes)]
    if not honoured:
        return
    position_params = found["params"]["mixer"].get("position", {})
    rest = {k: v for k, v in found["params"]["mixer"].items() if k != "position"}

    def run(params):
        all_params = {**found["params"], "mixer": {**rest, "position": params}}
        y = block.apply({**found, "params": all_params}, x, packed)[0]
        return jnp.sum(jnp.sin(3 * y)), y

    gradient, y = jax.jit(jax.grad(run, has_aux=True))(position_params)
    without = jax.jit(Block("no_pe", mixer, block.form).apply)({"params": {"mixer": rest}}, x,
                                                               packed)[0]
    assert np.abs(without - y).max() > 1e-6, "law 8: the lane does nothing"
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), f"law 8: gradient of {where} is not finite"
        assert np.abs(leaf).max() > 1e-9, f"law 8: {where} gets no gradient"


@pytest.mark.parametrize("mixer", [
    pytest.param(mixer, id=name_of(mixer),
                 marks=() if mixer in FIRST and leads(mixer) else pytest.mark.full)
    for mixer in specs(mixers.PACKAGE)])
def test_identity_scheme_is_the_bare_mixer(mixer, x64):
    """Law 2: with lanes that say nothing at all, the mixer computes what it does under NoPE."""
    _, packed, _ = sequences("no_pe")
    block, x = Block("no_pe", mixer), inputs()
    found = variables(block, packed)
    bare = jax.jit(lambda found, x: block.make(parent=None).apply(
        {"params": found["params"]["mixer"]}, x, packed, None, L.Lanes())[0])
    close(jax.jit(block.apply)(found, x, packed)[0], bare(found, x), 1e-12, "law 2")


@pytest.mark.parametrize("position,mixer", grid(
    "refused", "unimplemented", today=lambda position, mixer:
    mixer in FIRST and leads(mixer) and not isinstance(position, list) and represents(position)))
def test_refusals_are_typed_and_come_before_a_compile(position, mixer):
    """Law 6: tracing alone raises, and says lane, mixer, code and reason."""
    _, packed, _ = sequences(position)
    cell = record(position, mixer)
    error = Refusal if cell["status"] == "refused" else Unimplemented
    with pytest.raises(error) as caught:
        jax.eval_shape(lambda: Block(position, mixer).init(jax.random.key(0), inputs(), packed))
    assert mixer["name"] in str(caught.value) and caught.value.lane in cell["reason"]
    if error is Refusal:
        assert caught.value.code == cell["code"] and caught.value.reason


@pytest.mark.parametrize("mixer", [
    pytest.param(mixer, id=name_of(mixer), marks=() if mixer in FIRST else pytest.mark.full)
    for mixer in specs(mixers.PACKAGE)])
def test_nothing_is_read_or_written_outside_a_buffer(mixer):
    """Law 7: a stream longer than its buffers is exact (bounded state) or NaN, never clamped."""
    whole, _, _ = sequences("no_pe")
    block, x = Block("no_pe", mixer), inputs()
    found, apply = variables(block, whole), jax.jit(block.apply)
    wanted = apply(found, x, whole)[0]
    state = block.make(parent=None).init_state(BATCH, 8)
    for a, b in ((0, 6), (6, 12), (12, 18), (18, 24)):
        y, state = apply(found, x[:, a:b], whole[a:b], state)
        exact = np.allclose(y, wanted[:, a:b], atol=1e-4)
        if b <= 8:
            assert exact
        else:
            assert exact or np.isnan(y).all(), "law 7: past the buffer, neither exact nor NaN"
