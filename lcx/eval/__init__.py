"""Evaluation: how a model trained at length L does with more context, and how sure that is.

    rows = ladder(model, variables, documents, train_length=256, max_factor=8, fairness=...)
    for row in rows:                 # rung by rung; a row is a dict, ready for JSON
        ...

Files: `ladder` walks the rungs; `targets` chooses what is scored; `windows` cuts texts; `scorer`
runs the model; `tally` sums per document; `reporter` and `rows` write rows; `lengths` reads stable
and useful length off a curve; `statistics` holds the intervals; `compare` pairs two runs;
`unigram` and `sliding` are the baseline and the perplexities of the literature.
docs/evaluation.md explains what each number means.
"""
