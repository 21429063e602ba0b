"""The ladder against numpy loops, and the traps that turn a length curve into a fiction."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import sharding
from lcx.errors import ConfigError, DataError, TableEnd
from lcx.eval.compare import difference
from lcx.eval.ladder import ladder
from lcx.eval.lengths import contexts, needed_tokens, stable_length, useful_length
from lcx.eval.statistics import Estimate
from lcx.eval.targets import choose
from lcx.eval.unigram import count
from tests.eval_standins import FAIRNESS, StandIn, Text, texts

L = 16
SCALE = dict(scale=np.float32(0.003))


def climb(model, documents, variables=SCALE, **options):
    settings = dict(train_length=L, max_factor=4, targets=12, seed=1, batch_tokens=200,
                    fairness=FAIRNESS, resamples=400)
    return list(ladder(model, variables, documents, **{**settings, **options}))


def pick(rows, metric, method="same_target"):
    return {r["length"]: r for r in rows if (r["metric"], r["method"]) == (metric, method)}


def values(rows, metric, method="same_target"):
    return {c: r["value"] for c, r in pick(rows, metric, method).items()}


def blocks(documents, factor=4, targets=12, seed=1):
    chosen = choose(documents, block=L // 4, reach=factor * L, count=targets, seed=seed)
    return list(zip(chosen.document, chosen.start))


def test_every_rung_equals_a_loop_over_target_tokens():
    documents = texts([90, 120, 30, 200, 75])
    model = StandIn(by_context=lambda seen: 3.0 - 0.2 * seen**0.5)
    rows = climb(model, documents)
    bpb, perplexity, gap = (values(rows, m) for m in ("bpb", "perplexity", "bpb_gap"))
    assert sorted(bpb) == [4, 8, 12, 16, 32, 64] == contexts(L, 4)
    for c in bpb:
        nats = spans = tokens = 0
        for d, start in blocks(documents):
            for i in range(L // 4):  # the i-th target of a block has c + i tokens before it
                nats += model.by_hand(0.003, documents[d].tokens, start + i, c + i)
                spans += int(documents[d].token_bytes[start + i])
                tokens += 1
        assert bpb[c] == pytest.approx(nats / math.log(2) / spans, rel=1e-5)
        assert perplexity[c] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert pick(rows, "bpb")[c]["tokens"] == tokens == 48
        assert gap[c] == pytest.approx(bpb[c] - bpb[16], abs=1e-9)
    assert gap[16] == 0.0 and pick(rows, "bpb_gap")[16]["high"] == 0.0
    steps = values(rows, "bpb_step")
    assert sorted(steps) == [8, 16, 32, 64]
    assert all(steps[c] == pytest.approx(bpb[c] - bpb[c // 2], abs=1e-9) for c in steps)


def test_a_model_without_memory_is_exactly_flat():
    """The fake gain of scoring other tokens at other lengths (0.20 bpb for ALiBi) cannot occur."""
    documents = texts([100, 140, 90, 80])
    rows = climb(StandIn(), documents, variables=dict(scale=np.float32(0)))
    assert all(abs(g) < 1e-6 for g in values(rows, "bpb_gap").values())
    assert len({(r["documents"], r["tokens"], r["extra"]["targets"])
                for r in pick(rows, "bpb").values()}) == 1


def test_blocks_never_overlap_and_have_their_context():
    documents = texts([70, 500, 68, 67, 300])
    chosen = choose(documents, block=4, reach=64, count=60, seed=0)
    seen = set()
    for d, start in zip(chosen.document, chosen.start):
        assert 64 <= start <= len(documents[d].tokens) - 4
        tokens = {(d, start + i) for i in range(4)}
        assert not tokens & seen
        seen |= tokens
    share = np.bincount(chosen.document, minlength=5)
    assert share.tolist()[0] == share[2] == 1 and share[3] == 0  # 6, 4 and 3 tokens of room
    assert abs(int(share[1]) - int(share[4])) <= 1 and share.sum() == 60
    few = choose(texts([90] * 5), block=4, reach=64, count=8, seed=0)
    assert sorted(np.bincount(few.document)) == [1, 1, 2, 2, 2]
    assert len(choose(documents, block=4, reach=64, count=10_000, seed=0).start) <= 1 + 109 + 1 + 59


def test_targets_depend_on_the_seed_only():
    documents = texts([100, 140, 90, 80])
    same = [choose(documents, block=4, reach=64, count=9, seed=s).digest for s in (3, 3, 4)]
    assert same[0] == same[1] != same[2]


def test_documents_too_short_say_what_to_do():
    with pytest.raises(DataError, match=r"68 tokens.*'text-1' with 50.*lower max_factor"):
        climb(StandIn(), texts([20, 50]))
    assert needed_tokens(L, 4) == 68
    climb(StandIn(), texts([20, 68]))
    with pytest.raises(DataError, match=r"68 tokens.*'text-1' with 67"):
        climb(StandIn(), texts([20, 67]))
    with pytest.raises(DataError, match="no documents"):
        climb(StandIn(), [])


@pytest.mark.parametrize("wrong, message", [
    (dict(max_factor=3), "power of two"), (dict(train_length=18), "multiple of 4"),
    (dict(targets=0), "positive"), (dict(batch_tokens=0), "positive"), (dict(chunk=0), "positive"),
    (dict(fairness={k: v for k, v in FAIRNESS.items() if k != "dirty"}), "dirty"),
    (dict(fairness={**FAIRNESS, "state_size": None}), "state_size"),
    (dict(fairness={**FAIRNESS, "sede": 1}), "did you mean 'seed'"),
    (dict(unigram=np.ones(49)), "49 ids"),
])
def test_impossible_settings_raise_before_anything_runs(wrong, message):
    model = StandIn()
    settings = dict(train_length=L, max_factor=4, fairness=FAIRNESS)
    with pytest.raises(ConfigError, match=message):
        ladder(model, SCALE, texts([100, 140]), **{**settings, **wrong})
    assert not model.traces


def test_one_compile_per_shape_also_for_another_checkpoint():
    model, documents = StandIn(), texts([90, 120, 200, 75])
    first = values(climb(model, documents), "bpb")
    # The rungs up to 3L/4 share the shape of the train length; each longer one has its own.
    # The longest is traced once more, by its shape: does a table end before it?
    assert sorted(model.traces) == [(1, 68), (2, 68), (5, 36), (10, 20), (12, 16)]
    again = values(climb(model, documents, variables=dict(scale=np.float32(0.006))), "bpb")
    assert len(model.traces) == 5 and first != again


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
def test_pieces_through_the_state_change_nothing(chunk):
    model, documents = StandIn(), texts([90, 120, 200, 75])
    whole, pieces = climb(model, documents), climb(model, documents, chunk=chunk)
    assert values(pieces, "bpb") == pytest.approx(values(whole, "bpb"), rel=1e-6)


def test_batch_size_changes_nothing_and_padding_rows_do_not_count():
    documents = texts([90, 120, 200, 75])
    small, large = (climb(StandIn(), documents, batch_tokens=n) for n in (1, 10_000))
    assert values(small, "bpb") == pytest.approx(values(large, "bpb"), rel=1e-6)
    assert all(r["tokens"] == 48 for r in pick(small, "bpb").values())


def test_batches_fit_the_mesh():
    model = StandIn()
    with jax.set_mesh(sharding.make_mesh(data=4, fsdp=2)):
        rows = climb(model, texts([90, 120, 200, 75]))
    assert {batch for batch, _ in model.traces} == {8, 16}
    assert all(r["tokens"] == 48 for r in pick(rows, "bpb").values())


def test_schemes_are_told_the_window_not_its_padding():
    class Told(StandIn):
        def apply(self, variables, inputs, targets, seq, state=None, method=None):
            return jnp.broadcast_to(seq.length * 1.0, inputs.shape), None

    found = values(climb(Told(), texts([90, 120, 200, 75])), "perplexity")
    assert {c: math.log(v) for c, v in found.items()} == pytest.approx({c: c + 4 for c in found})


def test_finished_rungs_survive_running_out_of_memory():
    documents = texts([90, 120, 200, 75])
    whole, short = StandIn(), StandIn(memory=40)
    rows = climb(short, documents, batch_tokens=80)
    bpb = pick(rows, "bpb")
    assert [c for c in sorted(bpb) if bpb[c]["value"] is not None] == [4, 8, 12, 16, 32]
    assert bpb[64]["extra"]["status"] == "oom" and "RESOURCE" in bpb[64]["extra"]["reason"]
    assert {(5, 16), (2, 16)} <= set(short.traces)  # a smaller batch was tried
    kept = {c: v for c, v in values(climb(whole, documents), "bpb").items() if c < 64}
    assert {c: bpb[c]["value"] for c in kept} == pytest.approx(kept, rel=1e-6)
    assert pick(rows, "stable_length")[32]["extra"]["at_least"] is False
    json.dumps(rows, allow_nan=False)


def test_other_runtime_errors_are_not_swallowed():
    class Broken(StandIn):
        def apply(self, *args, **kwargs):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        climb(Broken(), texts([90, 120]))


def test_a_table_that_ends_refuses_its_rungs_and_keeps_the_others():
    rows = climb(StandIn(ends_at=L), texts([90, 120, 200, 75]))
    bpb = pick(rows, "bpb")
    ok = [c for c in sorted(bpb) if bpb[c]["extra"]["status"] == "ok"]
    assert ok == [4, 8, 12]  # 12 + 4 targets: the whole train length and not a token more
    assert bpb[64]["extra"] == {**bpb[64]["extra"], "status": "refused",
                                "reason": "the table ends at 16"}
    assert not pick(rows, "bpb_gap") and pick(rows, "stable_length")[12]["value"] is None


def test_a_table_that_gives_nan_is_refused_in_its_own_words_before_it_is_run():
    class Table(StandIn):
        def apply(self, variables, inputs, targets, seq, state=None, method=None):
            with jax.ensure_compile_time_eval():  # evaluated where the ids are known
                inside = seq.ids[..., 0] < L
                if not isinstance(inside, jax.core.Tracer) and not bool(inside.all()):
                    raise TableEnd(f"the table ends at {L}")
            nll, state = super().apply(variables, inputs, targets, seq, state, method)
            return jnp.where(inside, nll, jnp.nan), state

    model = Table()
    bpb = pick(climb(model, texts([90, 120, 200, 75])), "bpb")
    assert model.traces == [(1, 16), (12, 16)]  # nothing longer than the table got to its losses
    assert {c: (r["extra"]["status"], r["extra"].get("reason")) for c, r in bpb.items()} == {
        **{c: ("ok", None) for c in (4, 8, 12)},
        **{c: ("refused", "the table ends at 16") for c in (16, 32, 64)}}


def test_losses_that_are_not_finite_are_marked_not_averaged():
    rows = climb(StandIn(nan_at=30), texts([90, 120, 200, 75]))
    status = {c: r["extra"]["status"] for c, r in pick(rows, "bpb").items()}
    assert status == {4: "ok", 8: "ok", 12: "ok", 16: "ok", 32: "nan", 64: "nan"}
    json.dumps(rows, allow_nan=False)


def test_half_precision_losses_and_foreign_ids_raise():
    with pytest.raises(TypeError, match="bfloat16"):
        climb(StandIn(dtype=jnp.bfloat16), texts([90, 120]))
    with pytest.raises(DataError, match="outside the model's vocabulary of 40"):
        climb(StandIn(vocab_size=40), texts([90, 120]))


def test_synthetic_tokens_are_not_scored():
    documents = texts([90, 120, 200, 75])
    rows = climb(StandIn(), documents)
    for document in documents:
        document.token_bytes[document.tokens % 7 == 0] = 0
    real = sum(int(documents[d].tokens[s + i] % 7 != 0) for d, s in blocks(documents)
               for i in range(4))
    assert 0 < real < 48
    fewer = climb(StandIn(), documents)
    assert {r["tokens"] for r in pick(fewer, "bpb").values()} == {real}
    assert {r["tokens"] for r in pick(rows, "bpb").values()} == {48}


def test_token_mean_is_not_the_mean_of_document_means():
    """Averaging window means instead of tokens: 2.169 against 2.175."""
    documents = texts([72, 400])
    documents[0].tokens[:] = 0
    documents[1].tokens[:] = 40
    rows = climb(StandIn(), documents, variables=dict(scale=np.float32(0)))
    share = np.bincount([d for d, _ in blocks(documents)])
    assert share[0] != share[1]
    mean = (share * [0.0, 0.4]).sum() / share.sum()
    assert values(rows, "perplexity")[64] == pytest.approx(math.exp(mean), rel=1e-6)


class Copier(StandIn):
    """Knows a token that it has seen in the window (0.1 nats), guesses the others (5 nats)."""

    def apply(self, variables, inputs, targets, seq, state=None, method=None):
        step = jnp.arange(inputs.shape[1])
        match = (inputs[:, None, :] == targets[:, :, None]) & (step <= step[:, None])
        return jnp.where(match.any(-1), 0.1, 5.0), None


def _periodic(period=40, size=400, documents=6):
    """Texts that repeat their own 40 distinct tokens: context helps up to 40 tokens back."""
    draw = np.random.default_rng(0)
    one = lambda n: np.resize(50 * n + draw.permutation(period), size).astype(np.int32)
    return [Text(f"p{n}", one(n), np.ones(size, np.int32)) for n in range(documents)]


def test_use_of_context_shows_and_the_control_takes_it_away():
    rows = climb(Copier(vocab_size=300), _periodic(), shuffled_prefix=True)
    gap, control = values(rows, "bpb_gap"), values(rows, "bpb_gap", "shuffled_prefix")
    assert gap[64] == pytest.approx((0.1 - 5.0) / math.log(2))
    assert control[64] == pytest.approx(0.0, abs=1e-9) and sorted(control) == [32, 64]
    assert pick(rows, "stable_length")[64]["value"] == 64
    assert pick(rows, "stable_length")[64]["extra"]["at_least"]
    assert pick(rows, "useful_length")[64]["value"] == 64


def test_the_control_needs_other_text():
    with pytest.raises(DataError, match="second document"):
        climb(StandIn(), texts([300]), shuffled_prefix=True)


def test_position_curve_is_the_mean_loss_at_each_position():
    documents = texts([90, 120, 200, 75, 88])
    model = StandIn(by_context=lambda seen: 3.0 - 0.2 * seen**0.5)
    rows = [r for r in climb(model, documents) if r["method"] == "position_curve"]
    at = 1
    for r in rows:  # log-spaced, without holes
        assert r["extra"]["first"] == r["length"] == at
        at = r["extra"]["last"] + 1
        losses = [model.by_hand(0.003, documents[d].tokens, start - 64 + c, c)
                  for d, start in blocks(documents)
                  for c in range(r["extra"]["first"], r["extra"]["last"] + 1)]
        assert r["value"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert r["tokens"] == len(losses)
    assert at == 64 + 4


def test_unigram_baseline_on_the_same_targets():
    documents = texts([90, 120, 200, 75])
    counts = count(documents[2].tokens, 50)
    row = pick(climb(StandIn(), documents, unigram=counts), "bpb", "unigram")[0]
    nats = spans = 0.0
    for d, start in blocks(documents):
        for i in range(start, start + 4):
            nats -= math.log((counts[documents[d].tokens[i]] + 1) / (200 + 50))
            spans += documents[d].token_bytes[i]
    assert row["value"] == pytest.approx(nats / math.log(2) / spans) and row["tokens"] == 48
    with pytest.raises(DataError, match="id 49"):
        count(np.array([49]), 40)


def test_rows_say_how_fair_they_are():
    identity = dict(run="r", position="rope", mixer="attention", seed=3, checkpoint_step=7)
    for r in climb(StandIn(), texts([90, 120, 200, 75]), fairness={**FAIRNESS, **identity}):
        assert {k: r[k] for k in (*FAIRNESS, *identity)} == {**FAIRNESS, **identity}
        assert r["train_length"] == L and r["extra"]["evaluation_seed"] == 1
        assert r["low"] is None or r["low"] <= r["value"] <= r["high"]


def test_rungs_come_one_by_one():
    model = StandIn()
    rows = ladder(model, SCALE, texts([90, 120, 200, 75]), train_length=L, max_factor=4,
                  fairness=FAIRNESS)
    assert next(rows)["length"] == L
    assert model.traces == [(1, 68), (56, 20)]  # the longest by its shape alone, then the first


def test_runs_compare_on_equal_targets_only():
    documents = texts([90, 120, 200, 75, 99])
    worse = StandIn(by_context=lambda seen: 0.0 * seen + 0.5)
    a, b = (pick(climb(m, documents), "bpb")[32] for m in (worse, StandIn()))
    nats = [0.5 * 4 * n for n in np.bincount([d for d, _ in blocks(documents)])]
    bits = sum(nats) / math.log(2) / sum(a["extra"]["bytes_by_document"])
    found = difference(a, b)
    assert found.value == pytest.approx(bits, rel=1e-4) and found.low > 0
    other = pick(climb(StandIn(), documents, seed=2), "bpb")[32]
    with pytest.raises(ConfigError, match="different targets"):
        difference(a, other)
    with pytest.raises(ConfigError, match="no sums per document"):
        difference(a, pick(climb(StandIn(), documents), "perplexity")[32])


def test_stable_and_useful_length_by_hand():
    upper = lambda *highs: {16 * 2**k: Estimate(h - 0.01, h - 0.02, h)
                            for k, h in enumerate(highs)}
    stable = lambda *highs: stable_length(upper(*highs), train_length=16, asked=64)
    assert (stable(0.0, 0.02, 0.021).value, stable(0.0, 0.02, 0.021).at_least) == (32, False)
    assert stable(0.0, 0.5, 0.0).value == 16  # a return after a failure does not count
    assert stable(0.0, 0.01, 0.01).at_least
    assert stable_length({32: Estimate(0, 0, 0)}, train_length=16, asked=32).value is None
    useful = useful_length({8: Estimate(-1, -2, -0.5), 16: Estimate(-1, -2, 0.1),
                            32: Estimate(-1, -2, -0.1), 64: Estimate(-1, -2, 0.1),
                            128: Estimate(-1)}, asked=64)
    assert (useful.value, useful.at_least) == (32, False)
    assert useful_length({8: Estimate(1, 0.5, 2)}, asked=64).value is None
