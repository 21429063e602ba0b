"""Train short, test long, in minutes on a laptop: four schemes on attention, one recurrence.

`lcx sweep configs/quickstart.py` trains each arm at 128 bytes of Python source and scores the same
target bytes with up to 1024 bytes of context. `configs/quickstart.py:full` has three seeds, a wider
model and ten times the steps; `:gpu` is ten times the size in bfloat16, for one GPU.
"""

from lcx.config import base_config

ARMS = (
    ("attention", "no_pe"),
    ("attention", "sinusoidal"),
    ("attention", "rope"),
    ("attention", "alibi"),
    ("retention", "rope"),
)


def get_config(arg=None):
    """`arg`: None (minutes on two cores), "full" or "gpu"."""
    config = base_config()
    model, data, train = config.experiment.model, config.experiment.data, config.experiment.train
    model.width, model.depth = 96, 3
    data.train_length, data.batch_size = 128, 16
    train.steps = 300
    train.optimizer = dict(name="adamw", learning_rate=3e-3)
    config.experiment.eval.max_factor, config.experiment.eval.targets = 8, 128
    if arg == "full":
        model.width, model.depth = 128, 4
        train.steps, config.experiment.eval.targets = 3000, 256
    elif arg == "gpu":
        model.width, model.depth, model.dtype = 384, 6, "bfloat16"
        data.train_length, data.batch_size = 512, 64
        train.steps, config.experiment.eval.targets = 1000, 256
        train.optimizer = dict(name="adamw", learning_rate=2e-3)
    elif arg is not None:
        raise ValueError(f"quickstart has no variant '{arg}'; choose full or gpu")
    return config


def sweep(arg=None):
    """Overrides of each member: arms, times seeds."""
    for seed in range(3) if arg == "full" else (0,):
        for mixer, position in ARMS:
            heads = 6 if arg == "gpu" else 4
            yield {
                "experiment.model.mixer": dict(name=mixer, num_heads=heads),
                "experiment.model.position": position,
                "experiment.seed": seed,
            }
