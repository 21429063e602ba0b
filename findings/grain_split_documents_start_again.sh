#!/usr/bin/env bash
# grain 0.2.18: positions and segments of ConcatThenSplitIterDataset.
#
# Guess:     a document that is cut at the end of a row goes on in the next one with the positions
#            it had reached, and segments number the documents of a row 1, 2, 3.
# Behaviour: positions start again from 0 in every row, in the middle of a document, so a model
#            with positions never sees one beyond the row however long the document is, and cannot
#            tell a continuation from a beginning. An empty document takes a segment number and
#            leaves a gap (1, 3).
# Seen:      row 1: tokens 4..11 of a document of 12, positions 0..7
#            row 3: segments [1, 1, 1, 1, 3, 3, 0, 0]
# Exits with 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check 'grain==0.2.18' 'numpy==2.4.6'
"$work/env/bin/python" - <<'PY'
import grain
import numpy as np

documents = [dict(inputs=np.arange(1, n + 1)) for n in (5, 12, 3, 8, 0, 2)]
packed = grain.experimental.ConcatThenSplitIterDataset(
    grain.MapDataset.source(documents).to_iter_dataset(), length_struct=dict(inputs=8))
rows = [{name: np.asarray(x).tolist() for name, x in row.items()} for row in packed]
for number, row in enumerate(rows):
    print(number, row)
assert rows[1]["inputs"] == [4, 5, 6, 7, 8, 9, 10, 11], "rows are cut elsewhere now"
assert rows[1]["inputs_positions"] == list(range(8)), "positions go on now"
assert rows[3]["inputs_segment_ids"] == [1, 1, 1, 1, 3, 3, 0, 0], "an empty document counts no more"
PY
