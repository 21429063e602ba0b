"""Layer patterns that published models extend their length with, at the size of a laptop.

`lcx train configs/recipes.py:hwfa`, or all of them in one figure: `lcx sweep configs/recipes.py`.
Each recipe is one function from (depth, train_length) to a pattern; windows scale with the length.
"""

from lcx.config import base_config


def attention(window=None, **options):
    return dict(name="attention", window=window, **options)


def rope(depth, length):
    """The baseline: RoPE and full attention in every layer."""
    return [dict(position="rope", mixer=attention())]


def hwfa(depth, length):
    """Hybrid window-full attention (kexue.fm/archives/9603; its summary): RoPE in windows, then one
    full layer without positions, with log-n. w obeys (w-1)(K-1)+1 <= 3/4 L0, so that the windowed
    layers together see less than the train length and meet no distance that is new.
    """
    window = int((0.75 * length - 1) // (depth - 1)) + 1
    return [dict(position="rope", mixer=attention(window))] * (depth - 1) + [
        dict(position="log_n", mixer=attention())]


def nope_interleave(depth, length):
    """RNoPE (arXiv:2501.18795): every 4th layer has no positions; all layers see everything."""
    return [dict(position="rope", mixer=attention())] * 3 + [
        dict(position="no_pe", mixer=attention())]


def irope(depth, length):
    """Llama 4's iRoPE: as above with interleaved pairs, and a temperature on the layers without.

    Its temperature sets in at 8192 tokens, here at the train length; its rotary layers attend
    within chunks, which is left out.
    """
    rotary = dict(name="rope", interleaved=True, base=500000.0)
    return [dict(position=rotary, mixer=attention())] * 3 + [
        dict(position=dict(name="llama4_temperature", floor=length), mixer=attention())]


def window_nope(depth, length):
    """Command A (arXiv:2504.00698): 3 layers of RoPE in a window to 1 full layer without it."""
    return [dict(position="rope", mixer=attention(length // 4))] * 3 + [
        dict(position="no_pe", mixer=attention())]


def gemma3(depth, length):
    """Gemma 3 (arXiv:2503.19786): 5 windowed layers with base 10^4 to 1 full one with base 10^6."""
    local = dict(position="rope", mixer=attention(length // 8, qk_norm=True))
    everywhere = dict(name="rope", base=1e6)
    return [local] * 5 + [dict(position=everywhere, mixer=attention(qk_norm=True))]


def drope(depth, length):
    """DroPE (github.com/SakanaAI/DroPE), second stage: the baseline's parameters without RoPE,
    recalibrated at the original length for about a tenth of the steps.

    lcx train configs/recipes.py:rope
    lcx train configs/recipes.py:drope --config.experiment.train.start_from=runs/recipes-rope/ID
    Far beyond, it wants a temperature: `lcx eval RUN --override position=length_temperature`.
    `lcx eval runs/recipes-rope/ID --override position=no_pe` drops without recalibration.
    """
    return [dict(position="no_pe", mixer=attention())]


STEPS = {"drope": 0.1}  # of the steps of the others
RECIPES = {recipe.__name__: recipe for recipe in (
    rope, hwfa, nope_interleave, irope, window_nope, gemma3, drope)}


def get_config(arg=None):
    """`arg`: a recipe's name; rope if None."""
    if arg is not None and arg not in RECIPES:
        raise ValueError(f"recipes has no '{arg}'; choose {', '.join(RECIPES)}")
    config = base_config()
    model, length = config.experiment.model, config.experiment.data.train_length
    model.depth = 12
    model.pattern = RECIPES[arg or "rope"](model.depth, length)
    config.experiment.train.steps = int(STEPS.get(arg, 1.0) * config.experiment.train.steps)
    return config


def sweep(arg=None):
    """Every recipe but DroPE, which is a second stage."""
    config = get_config()
    depth, length = config.experiment.model.depth, config.experiment.data.train_length
    for name, recipe in RECIPES.items():
        if name != "drope":
            yield {"experiment.model.pattern": recipe(depth, length), "runtime.label": name}
