"""Every key of a config, its default and what it means; a key that is not here does not exist."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# Keys that hold a component, dict(name=..., **options); its name is a file of this package.
COMPONENTS = {
    "experiment.model.position": "lcx.positions",
    "experiment.model.mixer": "lcx.mixers",
    "experiment.model.mlp": "lcx.model.mlps",
    "experiment.data.corpus": "lcx.data.corpora",
    "experiment.data.tokenizer": "lcx.data.tokenizers",
    "experiment.data.packing": "lcx.data.packings",
    "experiment.data.task": "lcx.tasks",
    "experiment.train.optimizer": "lcx.train.optimizers",
    "experiment.train.schedule": "lcx.train.schedules",
    "runtime.trackers": "lcx.train.trackers",
}
# May also be a list: id map + rotation + temperature ...
STACKS = {"experiment.model.position", "runtime.trackers"}
INJECTED = {  # fields that a builder sets, so that a config may not
    "lcx.positions": ("site",),
    "lcx.mixers": ("position", "width", "train_length", "output_scale"),
    "lcx.model.mlps": ("width", "output_scale"),
    "lcx.train.trackers": ("folder", "name", "config", "start"),
}
PATTERN = "experiment.model.pattern"  # a list of layers, each a dict of the keys below
LAYER_KEYS = {"position": "lcx.positions", "mixer": "lcx.mixers", "mlp": "lcx.model.mlps"}
# None leaves it out.
OPTIONAL = {"experiment.model.mlp", "experiment.data.task", "runtime.trackers"}


def is_component(path: str) -> bool:
    return path in COMPONENTS or path == PATTERN


def base_config() -> ConfigDict:
    """The default config: a small byte-level RoPE transformer on the standard library's source.

    `experiment` decides the result and is hashed into the run id; `runtime` says where and how it
    is computed and is not. Keys are locked: an unknown one raises.
    """
    config = ConfigDict()
    config.experiment = ConfigDict()
    config.experiment.seed = 0  # the only source of randomness: init, data order, position draws
    config.experiment.model = _model()
    config.experiment.data = _data()
    config.experiment.train = _train()
    config.experiment.eval = _eval()
    config.runtime = _runtime()
    return config.lock()


def _component(name: str):
    """A slot for a component; assigned whole, so that no option of the old one stays behind."""
    slot = placeholder(object)  # typed `object`, ConfigDict leaves what it holds as it is
    slot.set(name)
    return slot


def _model() -> ConfigDict:
    c = ConfigDict()
    c.vocab_size = placeholder(int)  # None: what the tokenizer has
    c.width = 128  # of the residual stream
    c.depth = 4  # layers in all; a multiple of the pattern's length
    c.position = _component("rope")  # a component, or a list of them (a stack)
    c.mixer = _component("attention")
    c.pattern = placeholder(list)  # one period of layers, e.g. [dict(mixer="rglru"), {}]
    c.mlp = _component("gated")  # or None: mixers only
    c.share_position = False  # one scheme's parameters for all layers (T5's table)
    c.tie_embeddings = True  # the output head is the embedding table
    c.remat = "none"  # what the backward pass recomputes: none, dots or full
    c.dtype = "float32"  # of compute; parameters, norms, softmax and scans stay float32
    c.predict_ahead = 0  # further tokens that training predicts from each state (DeepSeek-V3)
    c.ahead_weight = 0.3  # of the mean of their losses
    return c


def _data() -> ConfigDict:
    c = ConfigDict()
    c.corpus = _component("stdlib")
    c.tokenizer = _component("bytes")
    c.train_length = 128  # tokens per training row
    c.batch_size = 16  # rows per step, over all devices
    c.packing = _component("contiguous")  # or first_fit: whole documents, with segments
    c.validation = 0.1  # fraction of the documents, drawn by the hash of their content
    c.test = 0.05
    c.deduplicate = True  # drop documents that repeat an earlier one byte for byte
    c.epochs = placeholder(int)  # None: without end, each epoch in its own order
    c.task = placeholder(object)  # a synthetic task (mqar, copy) instead of corpus ... epochs
    return c


def _train() -> ConfigDict:
    c = ConfigDict()
    c.steps = 300
    c.optimizer = _component("adamw")
    c.schedule = _component("warmup_cosine")
    c.clip = 1.0  # global gradient norm; 0 turns clipping off
    c.accumulate = 1  # micro-batches per step
    c.start_from = placeholder(str)  # a trained run, folder or id, whose parameters come first
    c.learning_rate_tuned = False  # whether the rate was tuned for this arm; written into each row
    return c


def _eval() -> ConfigDict:
    c = ConfigDict()
    c.split = "validation"  # validation or test
    c.documents = placeholder(int)  # at most so many of them; None: all that are long enough
    c.max_factor = 8  # the ladder goes up to max_factor x train_length, in doublings
    c.targets = 256  # blocks of train_length/4 tokens, the same at every context; rows of a task
    c.seed = 0  # chooses the targets; arms are only paired where it agrees
    c.resamples = 10_000  # of the bootstrap over documents
    c.batch_tokens = 16_384  # scored in one call
    c.chunk = placeholder(int)  # tokens per piece through the model's state; None: in one call
    c.shuffled_prefix = False  # the control in which context beyond train_length is foreign
    c.overrides = placeholder(list)  # test-time schemes: [{"experiment.model.position": ...}, ...]
    c.every = 0  # steps between ladders during training (during.jsonl); 0: only at the end
    return c


def _runtime() -> ConfigDict:
    c = ConfigDict()
    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # devices per axis; -1: the rest
    c.out = "runs"  # runs/<name>/<run id>/
    c.name = ""  # of the study; empty: the config file's name
    c.start_folder = ""  # where the run of train.start_from lies; empty: runs/*/<its id>
    c.label = ""  # what tells this arm apart in a report, beside scheme, mixer and seed
    c.log_every = 10  # steps
    c.checkpoint_every = 100  # steps
    c.trackers = placeholder(object)  # beside metrics.jsonl: tensorboard, wandb or a list of them
    c.backend = "auto"  # of softmax attention: auto, reference, chunked or cudnn
    c.data_cache = ""  # where prepared corpora live; empty: $LCX_DATA, else ~/.cache/lcx
    c.compile_cache = "~/.cache/lcx/xla"  # compiled programs for later runs; empty: none
    return c
