"""Which mixer recalls, and which copies: MQAR (arXiv:2312.04927) and copying, at toy size.

`lcx sweep configs/tasks.py` trains every mixer on both tasks and tests each up to 8 times the train
length. `lcx train configs/tasks.py:mqar,mamba2` is one of them; `lcx sweep configs/tasks.py:copy`
is one task. A step takes milliseconds on a GPU; attention solves MQAR in two minutes on two cores.
"""

from lcx import lookup
from lcx.config import base_config

TASKS = {
    "mqar": dict(name="mqar", vocab_size=64, pairs=4),
    "copy": dict(name="copy", vocab_size=16),
}
LENGTH = {"mqar": 64, "copy": 16}  # what a recurrence of this width can hold of a random string
STEPS = 4000
# Without a convolution or a write gate of its own a mixer needs a scheme to tell tokens apart.
POSITIONS = {"softmax": "rope", "selected": "rope"}
BARE = ("based", "cosformer", "flash", "gau", "gla", "hgrn2", "lightning", "linear_attention",
        "norm_attention", "performer", "rebased", "retention")
OPTIONS = {
    "flash": dict(group=16, gain_deviation=1.0),  # several groups; weights that are not ~0
    "fixed_sparse": dict(num_heads=4, stride=8, columns=2, groups=2),  # half of a block sums it up
    "performer": dict(num_heads=8, head_dim=8, num_features=64),  # few channels: a quieter kernel
}
DEPTH = {"short_conv": 6, "strided_sparse": 4}  # how many layers reach far enough; 2 for others


def of_mixer(name):
    """(mixer, position) at this width: two heads, so that each has room for a few pairs."""
    cls = lookup.find("lcx.mixers", name)
    heads = dict(num_heads=2) if "num_heads" in lookup.fields(cls) else {}
    default = "rope" if name in BARE else "no_pe"
    spec = dict(name=name, **(heads | OPTIONS.get(name, {})))
    return spec, POSITIONS.get(cls.family, default)


def get_config(arg=None):
    """`arg`: "mqar" or "copy", and after a comma a mixer ("mqar,mamba2")."""
    task, _, mixer = (arg or "mqar").partition(",")
    if task not in TASKS:
        raise ValueError(f"tasks has no '{task}'; choose {' or '.join(TASKS)}")
    config = base_config()
    model, data, train = config.experiment.model, config.experiment.data, config.experiment.train
    model.width, model.depth, model.mlp = 64, DEPTH.get(mixer, 2), None
    model.mixer, model.position = of_mixer(mixer or "attention")
    data.task = TASKS[task]
    data.train_length, data.batch_size = LENGTH[task], 64
    train.steps = STEPS
    train.optimizer = dict(name="adamw", learning_rate=3e-3)
    config.runtime.log_every, config.runtime.checkpoint_every = 100, 1000
    return config


def sweep(arg=None):
    """Every mixer on the task, or on both; "mqar,mamba2" is that one."""
    task, _, mixer = (arg or "").partition(",")
    for name in [task] if task else TASKS:
        for one in [mixer] if mixer else lookup.names("lcx.mixers"):
            spec, position = of_mixer(one)
            yield {"experiment.data.task": TASKS[name],
                   "experiment.data.train_length": LENGTH[name],
                   "experiment.model.mixer": spec, "experiment.model.position": position,
                   "experiment.model.depth": DEPTH.get(one, 2),
                   "runtime.label": name}
