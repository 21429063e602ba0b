"""The scorer shows each token once, cuts nothing off, and perplexity is labelled."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes
from lcx.errors import ConfigError, DataError
from lcx.eval.scorer import score, stream
from lcx.eval.sliding import perplexity, slide
from lcx.eval.targets import choose, foreign_prefixes
from lcx.eval.windows import Windows
from tests.eval_standins import FAIRNESS, StandIn, texts

SCALE = dict(scale=np.float32(0.003))


def _windows(document, start, first, stop, length=10):
    return Windows(*(np.array([v]) for v in (document, start, first, stop)), length=length)


@pytest.mark.parametrize("window, stride", [(8, 8), (8, 4), (8, 3), (8, 1), (30, 30), (100, 10)])
def test_sliding_scores_every_token_but_the_first_once(window, stride):
    documents = texts([30, 8, 9, 2, 1, 17])
    model = StandIn()
    found = []
    windows = slide(documents, window=window, stride=stride)
    for table in stream(model, SCALE, documents, windows, batch=3):
        for d, p, c, nll, span, token in zip(table.document, table.position, table.context,
                                             table.nll, table.bytes, table.token):
            found.append((int(d), int(p)))
            assert c <= window and (c >= window - stride + 1 or c == p)
            assert nll == pytest.approx(model.by_hand(0.003, documents[d].tokens, p, c), rel=1e-5)
            assert (span, token) == (documents[d].token_bytes[p], documents[d].tokens[p])
    assert sorted(found) == [(d, p) for d, t in enumerate(documents)
                             for p in range(1, len(t.tokens))]


def test_perplexity_is_over_tokens_and_carries_its_window():
    documents = texts([30, 60, 45, 17, 23])
    model = StandIn(by_context=lambda seen: 3.0 - 0.2 * seen**0.5)
    bpb, ppl = perplexity(model, SCALE, documents, window=8, stride=4, train_length=16,
                          fairness=FAIRNESS, batch_tokens=24, resamples=300)
    losses = [model.by_hand(0.003, t.tokens, p, p if p <= 8 else 5 + (p - 9) % 4)
              for t in documents for p in range(1, len(t.tokens))]
    spans = sum(int(t.token_bytes[1:].sum()) for t in documents)
    assert ppl["value"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert bpb["value"] == pytest.approx(sum(losses) / math.log(2) / spans, rel=1e-5)
    assert ppl["method"] == "sliding(window=8,stride=4)" and ppl["tokens"] == len(losses)
    first = next(perplexity(model, SCALE, documents, window=8, train_length=16, fairness=FAIRNESS))
    assert first["method"] == "non_overlapping(window=8)"


def test_a_stride_longer_than_the_window_would_skip_tokens():
    with pytest.raises(ConfigError, match="leave tokens out"):
        slide(texts([30]), window=8, stride=9)
    with pytest.raises(DataError, match="two tokens"):
        slide(texts([1, 0]), window=8, stride=8)


@pytest.mark.parametrize("window", [
    _windows(0, -1, 0, 5), _windows(0, 15, 0, 5), _windows(0, 0, 0, 11), _windows(0, 0, 5, 5),
])
def test_nothing_is_truncated_silently(window):
    with pytest.raises(DataError, match="truncated.*'text-0'"):
        next(stream(StandIn(), SCALE, texts([20]), window, batch=1))


def test_score_in_pieces_with_packed_rows():
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(0, 50, (2, 2, 11))
    segment = np.repeat([[1, 2, 3], [1, 4, 5]], [3, 4, 4], axis=1)
    seq = lanes.sequence(2, 11, segment=segment)
    model = StandIn(by_context=lambda seen: seen)
    whole = score(model, SCALE, inputs, targets, seq=seq)
    assert np.array_equal(score(model, SCALE, inputs, targets, seq=seq, chunk=4), whole)
    plain = 0.01 * targets + 0.003 * (np.cumsum(inputs, 1) % 97)
    assert np.allclose(whole - plain, [1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4], atol=1e-4)


def test_ids_outside_the_vocabulary_raise_on_the_host():
    good = np.zeros((1, 4), np.int32)
    for bad in (good + 50, good - 1, good + 70_000, good + 0.5):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(DataError, match="token id"):
                score(StandIn(), SCALE, *pair)
    with pytest.raises(ValueError, match="both be"):
        score(StandIn(), SCALE, good, good[:, 1:])


def test_a_model_that_drops_tokens_is_found_out():
    class Dropping(StandIn):
        def apply(self, *args, **kwargs):
            nll, state = super().apply(*args, **kwargs)
            return nll[:, :-1], state

    with pytest.raises(ValueError, match="cut off"):
        score(Dropping(), SCALE, np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32))


class Told(StandIn):
    """A model that answers with the length it is told."""

    def apply(self, variables, inputs, targets, seq, state=None, method=None):
        self.traces.append(inputs.shape)
        return jnp.broadcast_to(seq.length, inputs.shape).astype(jnp.float32), state


def test_every_window_of_every_metric_is_told_the_tokens_that_it_holds():
    documents = texts([30, 8, 9, 2, 1, 17, 9, 60])
    chosen = choose(documents, block=2, reach=8, count=5, seed=0)
    for windows, chunk in ((slide(documents, window=16, stride=16), None),
                           (slide(documents, window=16, stride=5), 6),
                           (slide(documents, window=100, stride=100), None),
                           (chosen.windows(4, at_least=8), None), (chosen.windows(4), None),
                           (foreign_prefixes(documents, chosen, 8, 4, seed=0), 3)):
        model, count = Told(), 0
        for table in stream(model, SCALE, documents, windows, batch=3, chunk=chunk):
            for d, p, c, told in zip(table.document, table.position, table.context, table.nll):
                held = min(windows.length, len(documents[d].tokens) - 1 - (p - c))
                if windows.length < 16:  # of the ladder: a context and a block of 2
                    held = (8 if windows.prefix else 4) + 2
                assert told == held, (windows.length, d, p)
                count += 1
        shapes = {shape for shape in model.traces if shape[0] == 3}
        assert count and len(shapes) <= 2  # a last uneven piece is its own program
