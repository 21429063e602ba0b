"""Data: text of any source, prepared once, read as exact and resumable batches.

    data = load(config.experiment.data, seed=0)        # prepares at first, then opens in a moment
    batches = data.train_batches()                     # endless; process_index/count: your share
    batch = next(batches)                              # dict of NumPy arrays, see below
    state = batches.get_state()                        # {"step": 1, "data": "..."}; JSON-able
    data.train_batches().set_state(state)              # continues bit for bit, on any host count
    data.evaluation_documents(8192, limit=64)          # whole held-out documents, bytes per token
    data.unigram_bits_per_byte(), data.describe()      # what to beat; what there is

A config node:

    data = dict(corpus="stdlib", tokenizer="bytes", packing="contiguous",
                train_length=256, batch_size=32)

Batch (B rows of this process, T = train_length):
    inputs, targets int32 [B,T]; weights float32 [B,T], 0 where nothing is scored (padding, a target
    in the next document); ids float32 [B,T,1], counted from the start of the row or segment;
    document int32 [B,T], the document's index in its split, -1 in padding; segment int32 [B,T],
    1, 2, ... per row and 0 in padding, absent where the packing has one document per row;
    moved float32 [B,T], the ids that a scheme gave to text that it took from several places of a
    document, only under `train_batches(transform)`.

A synthetic task takes the place of the corpus: `data = dict(task=dict(name="mqar"), ...)` gives
`TaskData`, whose batches are made as they are needed (`generated`, and `lcx/tasks/`).

Files: `corpora/`, `tokenizers/`, `packings/` hold one component each; `survey` counts, hashes and
splits; `builder` and `prepare` write ArrayRecord through TFDS; `tokens` holds flat token files;
`batches` shuffles and cuts, `moving` moves text for schemes that do; `evaluation` hands out whole
documents; `store` publishes folders.
"""

from lcx.data.batches import Batches
from lcx.data.dataset import Data, Settings, load, tokenizer_of
from lcx.data.evaluation import EvaluationDocument
from lcx.data.generated import TaskData

__all__ = ["Batches", "Data", "EvaluationDocument", "Settings", "TaskData", "load",
           "tokenizer_of"]
