"""Members of a sweep from axes."""

import pytest

from lcx.config import load_sweep
from lcx.errors import ConfigError
from lcx.study import axes


def test_product_zip_and_chain_nest():
    sizes = axes.zip({"w": [64, 128], "d": [2, 4]})
    assert sizes == [{"w": 64, "d": 2}, {"w": 128, "d": 4}]
    assert axes.product({"p": ["rope", {"name": "yarn"}]}, sizes, {"s": range(2)}) == [
        {"p": p, "w": w, "d": d, "s": s}
        for p in ("rope", {"name": "yarn"}) for w, d in ((64, 2), (128, 4)) for s in range(2)]
    assert axes.chain(sizes, {"s": (7,)}) == [*sizes, {"s": 7}]
    assert axes.product({"a": [1, 2], "b": [3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    assert axes.zip(sizes, {"s": range(2)})[1] == {"w": 128, "d": 4, "s": 1}
    assert axes.product({"p": []}, sizes) == [] and axes.product() == [{}]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: axes.zip({"a": [1, 2], "b": [1]}), "lengths 2, 1"),
    (lambda: axes.product({"a": [1]}, [{"a": 2}]), "two axes set 'a'"),
    (lambda: axes.product({"position": "rope"}), "'position' needs a list of values, got 'rope'"),
    (lambda: axes.chain({"seed": 3}), "needs a list"),
])
def test_mistakes_say_what_is_wrong(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_in_a_config_file(tmp_path):
    file = tmp_path / "small.py"
    file.write_text('''
from lcx.config import base_config
from lcx.study import axes

def get_config():
    return base_config()

def sweep():
    yield from axes.product({"experiment.model.position": ["rope", ["randomized", "alibi"]]},
                            {"experiment.seed": range(2)})
''')
    found = [(c.experiment.model.position, c.experiment.seed) for _, c in load_sweep(str(file))]
    stack = [{"name": "randomized"}, {"name": "alibi"}]
    assert found == [({"name": "rope"}, 0), ({"name": "rope"}, 1), (stack, 0), (stack, 1)]
