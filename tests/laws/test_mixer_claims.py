"""What a mixer claims of itself: forms that it lacks raise, a bounded state is bounded."""

from functools import partial

import jax
import pytest

from lcx import lookup, mixers, positions
from lcx.errors import ConfigError
from tests.laws.cells import (
    LENGTH,
    TRAIN_LENGTH,
    WIDTH,
    Block,
    inputs,
    leads,
    name_of,
    record,
    represents,
    sequences,
    specs,
)

FIRST = [dict(name=name, **lookup.find(mixers.PACKAGE, name).examples[0])
         for name in lookup.names(mixers.PACKAGE)]
SPOKEN = [spec for spec in specs(positions.PACKAGE) if represents(spec)]
# Whose memory of the past is a sum, of tokens without end.
RECURRENT = ("linear", "vector", "kernel", "slots", "delta", "diagonal", "wkv", "nonlinear", "gru")


@pytest.mark.parametrize("mixer", [
    pytest.param(mixer, id=name_of(mixer), marks=() if leads(mixer) else pytest.mark.full)
    for mixer in FIRST])
def test_a_form_that_a_cell_lacks_raises_while_it_is_traced(mixer):
    """`missing` of `Support` is what happens: no form is quietly replaced by another."""
    for position in SPOKEN:
        for form in record(position, mixer)["missing"]:
            block, (_, packed, _) = Block(position, mixer, form), sequences(position)
            with pytest.raises(ConfigError):
                if form == mixers.STEP:  # it is the form of a stream
                    jax.eval_shape(partial(block.make(parent=None).init_state, 2, LENGTH))
                jax.eval_shape(block.init, jax.random.key(0), inputs(), packed)


@pytest.mark.parametrize("mixer", FIRST, ids=name_of)
def test_a_recurrent_state_does_not_grow(mixer):
    """Nor does that of a long convolution that says it is a sum of modes (`finite_state`)."""
    made = mixers.make(mixer, position="no_pe", width=WIDTH, train_length=TRAIN_LENGTH,
                       parent=None)
    if made.family in RECURRENT or getattr(made, "finite_state", False):
        assert made.state_size(10**6) == made.state_size(40)
