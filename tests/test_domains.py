"""Every number states a domain: config keys, options of components, flags; new ones as well."""

import argparse
import math

import pytest

from lcx import lookup
from lcx.cli import COMMANDS, main, make_parser
from lcx.config import base_config, load, validate
from lcx.config.base import COMPONENTS, INJECTED
from lcx.config.domains import DOMAINS
from lcx.config.override import assign, leaf_paths
from lcx.domains import Count, Domain, checked, fit, hints, in_float32, is_numeric, states_domain
from lcx.errors import ConfigError
from lcx.study.preflight import check, check_data

WRONG = (-1, -0.5, 0, math.nan, math.inf, -math.inf, 1e-50, 1e39, 10**30, 10**5000, True, "many")
PACKAGES = dict.fromkeys(COMPONENTS.values())


def options():
    """(package, component, option, annotation) of whatever may hold a number."""
    for package in PACKAGES:
        for name in lookup.names(package):
            cls = lookup.find(package, name)
            for option, default in lookup.fields(cls).items():
                hint = hints(cls).get(option)
                assert hint is not None, f"{package}.{name}.{option} has no annotation"
                number = isinstance(default, (int, float)) and not isinstance(default, bool)
                if option not in INJECTED.get(package, ()) and (is_numeric(hint) or number):
                    yield package, name, option, hint


OPTIONS = list(options())


def numeric_keys():
    """Keys of the config whose default, or type, is a number."""
    config = base_config()
    for path in leaf_paths(config):
        section, key = path.rsplit(".", 1)
        node = config
        for part in section.split("."):
            node = node[part]
        if node.get_type(key) in (int, float) and not isinstance(node[key], bool):
            yield path


def flags():
    """(command, action) of every flag that takes a number, by its type or by its default."""
    parser = make_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for command, sub in commands.choices.items():
        for action in sub._actions:
            values = (action.default, action.const)
            number = any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
            if action.nargs != 0 and (number or action.type is not None):
                yield command, action


def inside(domain):
    """Its own ends, or numbers beside them."""
    low = domain.low if domain.low > -math.inf else -3.0
    high = domain.high if domain.high < math.inf else low + 5
    ends = [low, high, (low + high) / 2] if domain.kind is float else [low, low + 1, high]
    return [domain.kind(v) for v in ends if domain.kind(v) in domain]


def domains_in(hint):
    """The domains in an annotation."""
    if hasattr(hint, "__metadata__"):
        yield from (d for d in hint.__metadata__ if isinstance(d, Domain))
    for part in getattr(hint, "__args__", ()):
        yield from domains_in(part)


def test_every_number_of_a_component_states_its_domain():
    missing = [f"{package}.{name}.{option}" for package, name, option, hint in OPTIONS
               if not states_domain(hint)]
    assert not missing
    assert len(OPTIONS) > 300 and {package for package, *_ in OPTIONS} >= {
        "lcx.positions", "lcx.mixers", "lcx.model.mlps", "lcx.tasks", "lcx.train.optimizers",
        "lcx.train.schedules", "lcx.data.corpora", "lcx.data.tokenizers"}


def test_every_numeric_key_states_its_domain_and_none_is_left_over():
    keys = set(numeric_keys())
    assert len(keys) > 20
    assert keys <= DOMAINS.keys() <= set(leaf_paths(base_config()))
    assert all(states_domain(DOMAINS[path]) for path in keys)


def test_every_numeric_flag_states_its_domain():
    found = list(flags())
    assert {a.option_strings[-1] for _, a in found} >= {
        "--jobs", "--timeout", "--trials", "--length", "--watch", "--tokens", "--temperature",
        "--top-p", "--seed"}
    assert not [f"{c} {a.option_strings}" for c, a in found if not hasattr(a.type, "domain")]


@pytest.mark.parametrize(("package", "name", "option", "hint"), OPTIONS, ids=lambda v: str(v)[:25])
def test_an_option_takes_its_domain_and_nothing_else(package, name, option, hint):
    path = next(p for p, of in COMPONENTS.items() if of == package)
    for domain in domains_in(hint):
        assert inside(domain)
        outside = [v for v in WRONG if isinstance(v, (bool, str)) or not _holds(v, domain)]
        assert {True, "many"} < set(map(_key, outside)) and len(outside) > 5
        for value in outside:
            whole = [value] * len(hint.__args__) if str(hint).startswith("tuple") else value
            with pytest.raises(ConfigError) as told:
                fit(whole, hint, f"{path}.{option}")
            assert option in str(told.value) and "\n" not in str(told.value)


def _key(value):
    return value if isinstance(value, (bool, str)) else None


def _holds(value, domain):
    if domain.kind is int and not isinstance(value, int):
        return False
    try:
        return domain.kind(value) in domain
    except OverflowError:
        return False


@pytest.mark.parametrize("package", PACKAGES)
def test_examples_and_defaults_are_inside(package):
    for name in lookup.names(package):
        cls = lookup.find(package, name)
        defaults = {k: v for k, v in lookup.fields(cls).items()
                    if v is not lookup.dataclasses.MISSING and k not in INJECTED.get(package, ())}
        for example in ({}, *getattr(cls, "examples", ())):
            lookup.fitted(cls, {**defaults, **example}, name)


@pytest.mark.parametrize("path", DOMAINS)
def test_a_key_takes_its_domain_and_nothing_else(path):
    hint = DOMAINS[path]
    for domain in domains_in(hint):
        for value in [*WRONG, domain.low - 1, domain.high + 1]:
            config = base_config()
            if not isinstance(value, (bool, str)) and _holds(value, domain):
                continue
            with pytest.raises(ConfigError) as told:
                assign(config, path, value)
                validate(config)
            assert path in str(told.value) and "\n" not in str(told.value)
        for value in inside(domain):
            config = base_config()
            assign(config, path, value)
            validate(config)


@pytest.mark.parametrize(("command", "action"), list(flags()),
                         ids=lambda v: getattr(v, "dest", v))
def test_a_flag_refuses_in_one_line(command, action, capsys):
    for text in ("0", "-1", "nan", "inf", "1e400", "-1e-50", "many", "9" * 30, "9" * 5000):
        try:
            action.type(text)
        except argparse.ArgumentTypeError:
            assert main([command, "x.py", f"{action.option_strings[-1]}={text}"]) == 2
            told = capsys.readouterr().err
            assert told.startswith("lcx: error: ") and told.count("\n") == 1
        else:
            assert text in ("0", "-1e-50", "9" * 30)  # of a temperature
            assert in_float32(float(text)) in action.type.domain.__metadata__[0]
    assert len(COMMANDS) == 11


@pytest.mark.parametrize("override", [
    "experiment.train.clip=-1", "experiment.train.clip=NaN", "experiment.train.clip=1e400",
    "experiment.train.optimizer.learning_rate=-0.001", "experiment.model.mixer.num_kv_heads=0",
    "experiment.model.mixer.num_heads=0", "experiment.eval.documents=-1",
    "experiment.eval.documents=0", "experiment.eval.chunk=0", "experiment.eval.seed=-1",
    "experiment.seed=-1", "experiment.seed=4294967296", "experiment.seed=" + "9" * 40,
    "experiment.train.clip=" + "9" * 400, "runtime.mesh.data=0",
    "experiment.model.pattern=[{'mixer': {'name': 'attention', 'window': 0}}]",
    "experiment.model.position=['rope', {'name': 'log_n', 'original_length': 1}]",
    "experiment.data.task={'name': 'mqar', 'power': 0}",
])
def test_a_config_refuses_what_would_do_something_without_a_word(override):
    with pytest.raises(ConfigError, match="must be"):
        load("configs/quickstart.py", [override])


@pytest.mark.parametrize("override", [
    {"experiment.eval.chunk": 0}, {"experiment.eval.seed": -1},
    {"experiment.model.position": {"name": "yarn", "factor": -8.0}},
])
def test_test_time_overrides_are_held_to_the_same_domains(override):
    config = load("configs/quickstart.py", {"experiment.eval.overrides": [override]})
    with pytest.raises(ConfigError, match="must be"):
        check(config)


def test_what_a_layer_refuses_while_it_is_traced_is_refused_before_anything_runs():
    moe = {"experiment.model.mlp": {"name": "moe", "num_experts": 2, "top_k": 3}}
    with pytest.raises(ConfigError, match="top_k=3"):
        check(load("configs/quickstart.py", moe))


@pytest.mark.parametrize("mixer", [dict(name="delta_net", expand_v=0.01),
                                   dict(name="gau", expand=1e-3), dict(name="flash", expand=1e-3)])
def test_an_expansion_that_leaves_no_channel_is_refused(mixer):
    with pytest.raises(ConfigError, match="leave none"):
        check(load("configs/quickstart.py", {"experiment.model.mixer": mixer}))


@pytest.mark.parametrize("change", [
    {"experiment.model.mixer": dict(name="rwkv4", layer=3, num_layers=3),
     "experiment.model.position": "no_pe"},
    {"experiment.model.mixer": dict(name="rwkv7", layer=1)},
    {"experiment.model.mlp": dict(name="channel_mix", layer=4, num_layers=2, power=0.5)},
])
def test_a_layer_beyond_the_last_is_refused(change):
    with pytest.raises(ConfigError, match="must be below num_layers"):
        check(load("configs/quickstart.py", change))


def test_a_ladder_of_one_frequency_is_refused_where_its_logarithm_divides():
    with pytest.raises(ConfigError, match="above 1 and finite"):
        load("configs/quickstart.py", {"experiment.model.position": dict(name="resonance", base=1)})


def test_floats_are_judged_as_float32_holds_them():
    assert in_float32(1e-50) == 0.0 and in_float32(0.9999999999) == 1.0
    assert math.isnan(in_float32(1e39)) and math.isnan(in_float32(math.nan))
    for b2 in (1.0, 0.99999999999):  # a bias correction of 1 - b2 = 0
        with pytest.raises(ConfigError, match="below 1"):
            lookup.build("lcx.train.optimizers", dict(name="adamw", b2=b2))


def test_arguments_of_functions_are_held_to_their_annotations():
    @checked
    def take(text: str, count: Count = 3, *, most: Count | None = None):
        return text, count, most

    assert take("a") == ("a", 3, None) and take("a", 4, most=None) == ("a", 4, None)
    for wrong in (dict(count=0), dict(count=True), dict(most=0), dict(most=1.5)):
        with pytest.raises(ConfigError, match="1 or more"):
            take("a", **wrong)


@pytest.mark.parametrize(("epochs", "steps", "good"), [(1, 10, False), (3, 10, True),
                                                        (None, 10**6, True)])
def test_epochs_too_short_for_the_steps_are_found_before_training(tmp_path, epochs, steps, good):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * 40)
    config = load("configs/quickstart.py", {
        "experiment.data.corpus": dict(name="files", paths=str(tmp_path)),
        "experiment.data.train_length": 16, "experiment.data.batch_size": 2,
        "experiment.data.validation": 0.3, "experiment.data.test": 0.0,
        "experiment.data.epochs": epochs, "experiment.train.steps": steps,
        "experiment.eval.max_factor": 1, "runtime.data_cache": str(tmp_path / "cache")})
    if good:
        check_data(config)
        return
    with pytest.raises(ConfigError, match=r"epochs=1 of \d+ rows hold \d batches of 2, fewer"):
        check_data(config)
