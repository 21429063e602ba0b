"""Overrides of position, mixer and mlp reach the layers that they mean, or raise; and every key of
experiment.model matters."""

import jax
import jax.numpy as jnp
import pytest

from configs import hybrids, recipes
from lcx import lookup
from lcx.config import (
    apply,
    base_config,
    load,
    load_sweep,
    parse_override,
    parse_short,
    run_id,
    validate,
)
from lcx.config.base import LAYER_KEYS
from lcx.config.layers import spelt_out
from lcx.config.override import leaf_paths
from lcx.errors import ConfigError
from lcx.lanes import sequence
from lcx.model import build_model
from lcx.study import describe
from lcx.study.preflight import check
from lcx.study.under import LADDER, MEASURED, OPENED, SCORED, under

MODEL = "experiment.model"
SHIPPED = {"plain": base_config} | {
    f"{module.__name__}:{name}": lambda get=module.get_config, name=name: get(name)
    for module, names in ((hybrids, hybrids.HYBRIDS), (recipes, recipes.RECIPES))
    for name in names}
YARN = {"name": "yarn", "factor": 4.0}


def hybrid(*layers, **model):
    """A config of such layers."""
    return validate(apply(base_config(), {
        f"{MODEL}.pattern": list(layers), f"{MODEL}.depth": len(layers),
        **{f"{MODEL}.{key}": value for key, value in model.items()}}))


def built(config, key="position"):
    """What each layer of the model really uses."""
    model = {**dict(config.experiment.model.items()), "vocab_size": 256}
    return [layer[key] for layer in build_model(model, 128).layers]


def names(config, key="position"):
    return [spelt_out(key, one)["name"] for one in built(config, key)]


ROPE, NO_PE = dict(position="rope"), dict(position="no_pe")
SSM = dict(mixer="retention")


@pytest.mark.parametrize("layers", [
    [ROPE], [ROPE, {**ROPE, **SSM}], [ROPE, SSM], [{}, SSM], [dict(position=dict(
        name="rope", base=10000.0)), {}]], ids=str)
@pytest.mark.parametrize("say", [
    lambda: [(f"{MODEL}.position", YARN)], lambda: [parse_short("position=yarn,factor=4")],
    lambda: [parse_override(f'{MODEL}.position={{"name": "yarn", "factor": 4}}')],
    lambda: [(f"{MODEL}.position", "yarn"), (f"{MODEL}.position.factor", 4)]])
def test_an_override_goes_to_every_layer_where_all_use_one_scheme(layers, say):
    found = built(apply(hybrid(*layers), say()))
    assert [dict(one) for one in found] == [YARN] * len(layers)


@pytest.mark.parametrize(("key", "layers", "listed"), [
    ("position", [NO_PE, NO_PE, ROPE], "layers 0, 1 use no_pe; layer 2 uses rope"),
    ("position", [NO_PE, {}], "layer 0 uses no_pe; layer 1 uses rope"),
    ("position", [ROPE, dict(position=dict(name="rope", base=1e6))],
     r"layer 0 uses rope; layer 1 uses rope\(base=1000000.0\)"),
    ("mixer", [SSM, {}], "layer 0 uses retention; layer 1 uses attention"),
    ("mlp", [dict(mlp=None), dict(mlp="plain")], "layer 0 uses none; layer 1 uses plain"),
])
def test_where_layers_differ_it_is_an_error_that_lists_them(key, layers, listed):
    config, other = hybrid(*layers), {"position": "yarn", "mixer": "gru", "mlp": "gated"}[key]
    for change in ((f"{MODEL}.{key}", other), parse_short(f"{key}={other}"),
                   (f"{MODEL}.{key}.base", 3.0)):
        with pytest.raises(ConfigError, match=listed) as error:
            apply(config, [change])
        assert "\n" not in str(error.value) and f"pattern.{len(layers) - 1}.{key}=" in str(
            error.value) and f"{key}=NAME,replaces=" in str(error.value)


@pytest.mark.parametrize(("text", "expected"), [
    ("position=yarn,factor=4,replaces=rope", ["no_pe", "yarn", "alibi+rope", "yarn"]),
    ("position=yarn,replaces=no_pe", ["yarn", "rope", "alibi+rope", "rope"]),
    ("position=cope,replaces=alibi+rope", ["no_pe", "rope", "cope", "rope"]),
    ('position={"replaces": "rope", "by": ["alibi", "log_n"]}',
     ["no_pe", "alibi+log_n", "alibi+rope", "alibi+log_n"]),
    ('position={"replaces": {"name": "rope", "base": 500}, "by": "yarn"}',
     ["no_pe", "rope", "alibi+rope", "yarn"]),
    ("pattern.1.position=yarn,factor=4", ["no_pe", "yarn", "alibi+rope", "rope"]),
    ("pattern.3.position.base=7", ["no_pe", "rope", "alibi+rope", "rope"]),
])
def test_layers_are_named_by_number_or_by_what_they_use(text, expected):
    config = hybrid(NO_PE, {}, dict(position=["alibi", "rope"]),
                    dict(position=dict(name="rope", base=500)))
    new = apply(config, [parse_short(text)])
    assert ["+".join(part["name"] for part in (one if isinstance(one, tuple) else [one]))
            for one in built(new)] == expected
    assert built(new) != built(config)
    for one, name in zip(built(new), expected):
        if name == "yarn" and "factor=4" in text:
            assert one["factor"] == 4


def test_mixers_and_mlps_are_named_in_the_same_way():
    config = hybrid(SSM, {}, dict(mlp=None))
    new = apply(config, [parse_short("mixer=performer,replaces=attention")])
    assert names(new, "mixer") == ["retention", "performer", "performer"]
    assert built(apply(config, [parse_short("mlp=none,replaces=gated")]), "mlp") == [None] * 3
    assert names(apply(config, [parse_short("mlp=plain,replaces=none")]), "mlp") == [
        "gated", "gated", "plain"]
    assert built(apply(config, [parse_short("pattern.0.mlp=none")]), "mlp")[0] is None
    new = apply(config, [parse_override(f"{MODEL}.pattern.1.mixer.window=9")])
    assert built(new, "mixer")[1]["window"] == 9 and "window" not in built(new, "mixer")[2]


@pytest.mark.parametrize(("change", "message"), [
    ("position=yarn,replaces=alibi", "no layer uses .*'alibi'; there are: layer 0 uses no_pe"),
    ("pattern.2.position=yarn", "the period has 2 layers, counted from 0"),
    ("pattern.x.position=yarn", "by its number"), ("pattern.0=yarn", "by its number"),
    ("pattern.1.positoin=yarn", "did you mean 'position'"),
    ('position={"replaces": "rope"}', "got"),
    ('position={"replaces": "rope", "by": "yarn", "factor": 4}', "got"),
    ('position={"name": "yarn", "replaces": "rope"}', "differ"),
])
def test_what_names_no_layer_raises(change, message):
    with pytest.raises(ConfigError, match=message):
        apply(hybrid(NO_PE, {}), [parse_short(change)])


def test_a_plain_model_is_a_period_of_one_layer():
    new = apply(base_config(), [parse_short("pattern.0.position=yarn,factor=4")])
    same = apply(base_config(), [parse_short("position=yarn,factor=4")])
    replaced = apply(base_config(), [parse_short("position=yarn,factor=4,replaces=rope")])
    assert run_id(new) == run_id(same) == run_id(replaced) != run_id(base_config())
    with pytest.raises(ConfigError, match="1 layer, counted from 0"):
        apply(base_config(), [parse_short("pattern.1.position=yarn")])


def test_no_component_has_an_option_of_the_name_that_says_what_is_replaced():
    for package in LAYER_KEYS.values():
        for name in lookup.names(package):
            assert not {"replaces", "by"} & lookup.fields(lookup.find(package, name)).keys(), name


@pytest.mark.parametrize("source", list(SHIPPED))
def test_no_layer_without_positions_becomes_yarn_by_a_short_override(source):
    config = SHIPPED[source]()
    before = built(config)
    if len({str(spelt_out("position", one)) for one in before}) == 1:
        assert built(apply(config, [parse_short("position=yarn,factor=4")])) == [YARN] * len(before)
        return
    with pytest.raises(ConfigError, match="differ"):
        apply(config, [parse_short("position=yarn,factor=4")])
    after = built(apply(config, [parse_short("position=yarn,factor=4,replaces=rope")]))
    for old, new in zip(before, after):
        assert new == (YARN if spelt_out("position", old)["name"] == "rope" else old)
    assert YARN in after


def test_beside_a_new_pattern_a_scheme_is_for_the_layers_that_name_none():
    for order in (1, -1):
        pair = [(f"{MODEL}.pattern", [NO_PE, {}]), (f"{MODEL}.position", "alibi")][::order]
        assert names(apply(base_config(), pair)) == ["no_pe", "alibi"]
        pair = [(f"{MODEL}.pattern", [NO_PE, ROPE]), (f"{MODEL}.position", "alibi")][::order]
        with pytest.raises(ConfigError, match="position=alibi reaches no layer.*layer 1 uses rope"):
            apply(base_config(), pair)


FILE = '''
from lcx.config import base_config

def get_config(arg=None):
    config = base_config()
    config.experiment.model.pattern = {pattern}
    config.experiment.model.position = "{position}"
    return config

def sweep(arg=None):
    for seed in range(2):
        yield {{"experiment.seed": seed}}
'''


def file_of(folder, pattern, position="rope"):
    file = folder / "own.py"
    file.write_text(FILE.format(pattern=pattern, position=position))
    return str(file)


def test_a_sweep_makes_no_new_ids_for_unchanged_experiments(tmp_path):
    other = f"{MODEL}.position=alibi"
    mixed = file_of(tmp_path, [NO_PE, ROPE])
    with pytest.raises(ConfigError, match="layer 0 uses no_pe; layer 1 uses rope"):
        load_sweep(mixed, [other])
    part = [f'{MODEL}.position={{"replaces": "rope", "by": "alibi"}}']
    assert [names(config) for _, config in load_sweep(mixed, part)] == [["no_pe", "alibi"]] * 2
    alike = file_of(tmp_path, [ROPE, {**ROPE, **SSM}])
    members = [config for _, config in load_sweep(alike, [other])]
    assert [names(config) for config in members] == [["alibi"] * 2] * 2
    assert not {run_id(c) for c in members} & {run_id(c) for _, c in load_sweep(alike)}
    with pytest.raises(ConfigError, match="layers 0, 1 use no_pe; layer 2 uses rope"):
        load_sweep("configs/hybrids.py", [other])


def test_a_file_that_sets_what_no_layer_reads_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"own\.py: .*position=alibi reaches no layer"):
        load(file_of(tmp_path, [NO_PE, ROPE], "alibi"))
    assert names(load(file_of(tmp_path, [NO_PE, {}], "alibi"))) == ["no_pe", "alibi"]


# A changed value of each key of experiment.model; a new key is to be added here.
CHANGED = dict(vocab_size=300, width=256, position="alibi", mixer="retention", mlp="plain",
               pattern=[dict(position="alibi"), {}], share_position=True, tie_embeddings=False,
               remat="full", dtype="bfloat16", predict_ahead=1, ahead_weight=0.5, depth=None)


@pytest.mark.parametrize("source", list(SHIPPED))
def test_every_key_of_the_model_changes_the_model_or_raises(source):
    config = validate(SHIPPED[source]())  # of one spelling, before and after
    own = dict(config.experiment.model.items())
    assert CHANGED.keys() == own.keys()
    before = build_model({**own, "vocab_size": 256}, 128)
    kept = []
    for key, value in CHANGED.items():
        value = 2 * own["depth"] if key == "depth" else value
        try:
            other = validate(apply(config, {f"{MODEL}.{key}": value}))
            check(other)
            new = other.experiment.model
            model = build_model({**dict(new.items()), "vocab_size": new.vocab_size or 256}, 128)
        except ConfigError:
            continue
        assert model != before, key
        kept.append(key)
    assert len(kept) >= len(CHANGED) - 5  # all but those that differ by layer or say nothing here


def small():
    return apply(base_config(), {f"{MODEL}.width": 8, f"{MODEL}.depth": 2, f"{MODEL}.mixer": dict(
        name="attention", num_heads=2), f"{MODEL}.vocab_size": 11})


@pytest.mark.parametrize("config", [small(), apply(small(), {f"{MODEL}.pattern": [
    dict(position="t5_bias"), {}]})], ids=["plain", "hybrid"])
def test_every_key_of_the_model_changes_what_training_computes_or_raises(config):
    """Of the same kind but stronger: the lowered gradient, not the fields."""
    changed = {**CHANGED, "width": 16, "vocab_size": 12, "depth": 4, "position": "cable",
               "mixer": dict(name="retention", num_heads=2), "pattern": [dict(position="no_pe")]}
    shapes, text = lowered(config)
    for key, value in changed.items():
        try:
            new = validate(apply(config, {f"{MODEL}.{key}": value}))
            check(new)
        except ConfigError:
            assert key in ("ahead_weight", "position" if config.experiment.model.pattern else
                           "share_position"), key
            continue
        other, program = lowered(new)
        assert other != shapes or program() != text(), key


def lowered(config):
    """Shapes of the parameters, and the text of the gradient of all losses, on demand."""
    model = build_model(dict(config.experiment.model.items()), 8)
    tokens, seq = jnp.zeros((1, 8), jnp.int32), sequence(1, 8)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, seq))
    params = variables["params"]

    def loss(params, rest):
        (nll, _), told = model.apply({"params": params, **rest}, tokens, tokens, seq,
                                     method="score", mutable=["losses"])
        return nll.sum() + sum(map(jnp.sum, jax.tree.leaves(told)))

    rest = {name: tree for name, tree in variables.items() if name not in ("params", "losses")}
    return (jax.tree.map(lambda x: (x.shape, x.dtype), params),
            lambda: jax.jit(jax.grad(loss)).lower(params, rest).as_text())


TRAINING = {  # what a trained model no longer depends on, or may not be told otherwise
    "experiment.seed", "experiment.model.share_position", "experiment.model.remat",
    "experiment.model.predict_ahead", "experiment.model.ahead_weight",
    "experiment.data.train_length", "experiment.data.batch_size", "experiment.data.packing",
    "experiment.data.epochs", "experiment.eval.overrides", "experiment.eval.every", "runtime.out",
    "runtime.name", "runtime.start_folder", "runtime.log_every", "runtime.checkpoint_every",
    "runtime.trackers"}


def test_a_trained_run_refuses_the_keys_of_training():
    """A new key must be listed: here, or where it matters after training."""
    config = base_config()
    for path in leaf_paths(config):
        training = path in TRAINING or path.startswith("experiment.train.")
        value = config
        for key in path.split("."):
            value = value[key]
        for matters in (MEASURED, OPENED, SCORED):
            unread = matters is not MEASURED and path.startswith("experiment.eval.") and not (
                matters is SCORED and path == "experiment.eval.max_factor")
            if training or unread:
                with pytest.raises(ConfigError, match=f"cannot set '{path}'"):
                    under(config, {path: value}, matters)
            else:
                under(config, {path: value}, matters)
    assert {f"experiment.eval.{key}" for key in LADDER["experiment.eval"]} == {
        path for path in leaf_paths(config) if path.startswith("experiment.eval.")} - TRAINING


@pytest.mark.parametrize(("config", "changes"), [
    (base_config(), [f"{MODEL}.position=rope", f"{MODEL}.position={{'name': 'rope', 'base': 1e4}}",
                     f"{MODEL}.position.base=10000", f"{MODEL}.pattern.0.position=rope",
                     f"{MODEL}.pattern=[{{}}]", "experiment.eval.max_factor=8"]),
    (hybrid(NO_PE, dict(position=dict(name="rope", base=5e5))), [
        f"{MODEL}.pattern.1.position.base=500000", f"{MODEL}.pattern.0.position=no_pe",
        f"{MODEL}.position={{'replaces': 'no_pe', 'by': 'no_pe'}}"]),
    (hybrid(NO_PE, NO_PE), [f"{MODEL}.position=no_pe", f"{MODEL}.pattern=[{{'position': 'no_pe'}},"
                            "{'position': {'name': 'no_pe'}}]"]),
])
def test_an_override_that_changes_nothing_has_the_id_of_the_run(config, changes):
    config = apply(config, {"experiment.eval.every": 5,
                            "experiment.eval.overrides": [{"experiment.eval.chunk": 8}]})
    for change in changes:
        same = under(config, [parse_override(change)])
        assert run_id(same) == run_id(config), change
        assert describe.changes(config, same) == {} and describe.test_time(config, same) == ""
    other = under(config, [(f"{MODEL}.pattern.0.position", "alibi")])
    assert run_id(other) != run_id(config) and describe.test_time(config, other)
    elsewhere = under(config, {"runtime.backend": "reference"})
    assert elsewhere.runtime.backend == "reference" and run_id(elsewhere) == run_id(config)


def test_a_run_that_shares_a_table_can_be_tested_without_one():
    config = validate(apply(base_config(), {f"{MODEL}.position": "t5_bias",
                                            f"{MODEL}.share_position": True}))
    assert under(config, {f"{MODEL}.position": "shaw"}).experiment.model.share_position
    other = under(config, {f"{MODEL}.position": "alibi"})
    assert not other.experiment.model.share_position
    check(other)


def test_an_override_of_layers_has_a_short_label():
    config = hybrid(NO_PE, ROPE)
    other = under(config, [parse_short("position=yarn,factor=8,replaces=rope")])
    assert describe.position(other) == "no_pe/yarn(factor=8.0)"
    assert describe.test_time(config, other) == "over no_pe/rope"
    bare = under(config, [parse_short("pattern.1.mlp=none")])
    assert describe.test_time(config, bare) == "mlp=gated/None"
    assert describe.overrides_label({f"{MODEL}.pattern.1.position": YARN, f"{MODEL}.position": {
        "replaces": "rope", "by": YARN}, f"{MODEL}.mlp": {"replaces": "gated", "by": "plain"}
        }) == "mlp=plain"
