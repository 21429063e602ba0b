"""Generation: prefill in pieces and the step give what the whole forward pass gives."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes, lookup
from lcx.cli import main
from lcx.errors import ConfigError, DataError
from lcx.model import build_model
from lcx.model.decode import SLOTS, Decoder, pieces, sample

MIXERS = lookup.names("lcx.mixers")
FAMILIES = list({lookup.find("lcx.mixers", name).family: name for name in reversed(MIXERS)}
                .values())
WIDTH, PROMPT, COUNT, VOCAB = 32, 16, 4, 17  # two pieces of 8, then steps


def model_of(**options):
    return build_model(dict(dict(vocab_size=VOCAB, width=WIDTH, depth=1, position="no_pe",
                                 mixer="attention", mlp=None, tie_embeddings=False),
                            **options), train_length=16)


def variables_of(model):
    """As it starts, but for a small embedding: what a token says of itself would drown the rest."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    found = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens, lanes.sequence(1, 4)))
    return {**found, "params": {**found["params"],
                                "embedding": 0.02 * found["params"]["embedding"]}}


def greedy_agrees(model, decoder=None):
    """Every token is the argmax of the logits over all that stands before it."""
    variables, decoder = variables_of(model), decoder or Decoder(model)
    prompt = np.random.default_rng(0).integers(VOCAB, size=(2, PROMPT))
    found = np.stack(list(decoder.generate(variables, prompt, COUNT)), axis=1)
    whole = np.concatenate([prompt, found], axis=1)[:, :-1].astype(np.int32)
    seq = lanes.sequence(1, whole.shape[1], told_length=PROMPT + COUNT)
    logits = np.asarray(jax.jit(model.apply)(variables, whole, seq)[0])[:, PROMPT - 1:]
    chosen = np.take_along_axis(logits, found[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, logits.max(-1), atol=1e-4)
    assert logits.std(-1).min() > 1e-2  # or any token would do
    assert decoder.programs == 2  # of 8 tokens and of 1


def cell(mixer):
    return greedy_agrees(model_of(mixer=dict(
        name=mixer, **lookup.find("lcx.mixers", mixer).examples[0])))


@pytest.mark.parametrize("mixer", FAMILIES)
def test_greedy_is_the_argmax_of_the_whole_pass(mixer):
    cell(mixer)


@pytest.mark.full
@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in FAMILIES])
def test_greedy_is_the_argmax_of_the_whole_pass_on_every_mixer(mixer):
    cell(mixer)


def hybrid():
    window = dict(name="attention", num_heads=2, window=5)
    return model_of(depth=6, pattern=[
        dict(mixer=dict(name="rglru", num_heads=2)), dict(position="rope", mixer=window),
        dict(position="dynamic_ntk",  # it reads how long the request will be
             mixer=dict(name="attention", num_heads=2, num_kv_heads=1))])


def test_greedy_on_a_hybrid():
    greedy_agrees(hybrid())


def test_a_hybrids_cache_holds_what_each_layer_needs():
    def sizes(length):
        state = jax.eval_shape(lambda: hybrid().init_state(3, length))
        return [[leaf.shape for leaf in jax.tree.leaves(layer)] for layer in state.layers]

    short, long = sizes(64), sizes(512)
    recurrent, window, full = range(3)
    assert short[recurrent] == long[recurrent] and short[window] == long[window]
    assert not any(n in (64, 512) for shape in long[recurrent] + long[window] for n in shape)
    assert (2, 3, 5, 2, 16) in long[window]  # two periods, rows, the window's slots, heads, dim
    assert (2, 3, 512, 1, 16) in long[full] and (2, 3, 64, 1, 16) in short[full]
    for one in (short, long):  # every layer is there twice, stacked over depth
        assert all(shape[0] == 2 for layer in one for shape in layer)


def test_pieces_add_up():
    for length in (1, 7, 8, 9, 575, 1600):
        cut = pieces(length)
        assert sum(cut) == length and set(cut) <= {512, 64, 8, 1}
        assert cut == sorted(cut, reverse=True) and len(cut) <= length // 512 + 7 * 3


def test_requests_of_one_size_of_state_share_programs():
    model = model_of(mixer=dict(name="retention", num_heads=2))
    variables, decoder = variables_of(model), Decoder(model)
    for length, count, how in ((9, 3, {}), (17, 5, dict(temperature=1.0, top_p=0.5, seed=3)),
                               (8, SLOTS - 8, {})):
        assert len(list(decoder.generate(variables, np.zeros((1, length), int), count, **how))
                   ) == count
    assert decoder.programs == 2


class Told:
    """A stand-in that answers with the length it is told, and remembers nothing."""

    vocab_size = 64
    init_state = staticmethod(lambda batch, length: jnp.zeros((batch,)))

    def apply(self, variables, tokens, seq, state, method):
        return jax.nn.one_hot(jnp.broadcast_to(seq.length, tokens.shape[:1]), 64), state


def test_a_scheme_is_told_the_whole_request_from_the_first_piece_on():
    found = list(Decoder(Told()).generate({}, np.zeros((2, 19), int), 6))
    assert np.array(found).tolist() == [[25, 25]] * 6


def test_sampling_is_the_softmax_within_the_nucleus():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    many = jax.jit(lambda t, p: jax.vmap(lambda key: sample(logits, key, t, p)[0])(
        jax.random.split(jax.random.key(0), 4000)))
    shares = lambda t, p: np.bincount(np.asarray(many(t, p)), minlength=4) / 4000
    np.testing.assert_allclose(shares(1.0, 1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 0.8), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 0.81), np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)
    np.testing.assert_allclose(shares(1.0, 1e-6), [1, 0, 0, 0])
    square = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(0.5, 1.0), square / square.sum(), atol=0.03)
    assert (np.asarray(many(0.0, 1.0)) == 0).all()


def test_a_seed_repeats_and_another_does_not():
    model = model_of(mixer=dict(name="retention", num_heads=2))
    variables, decoder = variables_of(model), Decoder(model, ids=5)
    draw = lambda seed: np.concatenate(list(decoder.generate(
        variables, np.ones((1, 1), int), 40, temperature=5.0, seed=seed)))
    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any()
    assert len(set(draw(1).tolist())) > 2  # each step has a key of its own
    assert draw(1).max() == 4  # `ids`: none beyond what the tokenizer knows


@pytest.mark.parametrize("prompt, options, told", [
    (np.zeros((1, 0), int), {}, "at least one token"), (np.full((1, 2), 17), {}, "vocabulary"),
    (np.ones((1, 2), int), dict(count=0), "1 or more"),
    (np.ones((1, 2), int), dict(top_p=0.0), "top_p"),
    (np.ones((1, 2), int), dict(temperature=-1.0), "temperature")])
def test_impossible_requests_are_refused_before_anything_compiles(prompt, options, told):
    decoder = Decoder(model_of())
    with pytest.raises((ConfigError, DataError), match=told):
        decoder.generate({}, prompt, **{"count": 3, **options})
    assert decoder.programs == 0


def test_logits_that_are_no_numbers_end_it():
    model = model_of()
    bad = jax.tree.map(lambda x: x * jnp.nan, variables_of(model))
    with pytest.raises(DataError, match="not numbers"):
        list(Decoder(model).generate(bad, np.ones((1, 1), int), 2))


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    """A run of text and its words; a task's run and its numbers."""
    import io

    from lcx.config import apply, base_config, resolve, validate
    from lcx.study.generation import generate
    from lcx.study.restore import open_run

    config = validate(apply(base_config(), {
        "experiment.data.task": dict(name="copy", vocab_size=8),
        "experiment.data.train_length": 8, "experiment.model.width": 16,
        "experiment.model.depth": 1, "experiment.model.mixer": dict(name="attention", num_heads=1),
        "experiment.model.mlp": None, "experiment.train.steps": 1, "runtime.out": str(tmp_path),
        "runtime.name": "t", "runtime.compile_cache": ""}))
    (tmp_path / "c.json").write_text(json.dumps(resolve(config)))
    assert main(["train", str(tmp_path / "c.json"), "--no-eval"]) == 0
    folder = str(next(tmp_path.glob("t/*/config.json")).parent)
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("2 3 4 1"))
    assert main(["generate", folder, "--prompt", "-", "--tokens", "3"]) == 0
    shown = capsys.readouterr().out
    ids = [int(word) for word in shown.split()]
    assert shown.startswith("2 3 4 1 ") and shown.endswith("\n") and len(ids) == 7
    assert main(["generate", folder, "--prompt", "2 3 4 1", "--tokens", "3", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["token"] for line in lines] == ids[4:]
    assert main(["generate", folder, "--prompt", "2 9"]) == 2
    assert "'9' is no token" in capsys.readouterr().err
    assert main(["generate", folder, "--prompt", ""]) == 2
    assert "at least one" in capsys.readouterr().err

    class Words:  # a tokenizer whose tokens end inside a character
        vocab_size = 8
        encode = staticmethod(lambda text: np.frombuffer(text, np.uint8).astype(np.int32) % 8)
        decode = staticmethod(lambda ids: bytes([0xC3, 0xA9][token] for token in ids))

    run = dataclasses.replace(open_run(folder), tokenizer=Words)
    monkeypatch.setattr(Decoder, "generate",
                        lambda *a, **k: iter([np.array([t]) for t in (0, 1, 0, 0, 1, 0)]))
    assert list(generate(run, "hallo", 6)) == [
        (0, ""), (1, "\u00e9"), (0, ""), (0, "\ufffd"), (1, "\u00e9"), (0, "\ufffd")]
