#!/usr/bin/env bash
# bm25s: with backend="numba" the first 3 of the best 10 documents aren't the best 3, and which of equal documents are
# found isn't what backend="numpy" finds. FineScope isn't run.
#
# 2,000 documents of 20 words out of 300; a query of two words, which several documents hold equally often: the places
# behind the best are ties. With "numpy" k=3 gives what k=10 begins with; with "numba" it doesn't. Of a query whose
# words no document holds, "numpy" gives documents 0, 1999 and 1998, "numba" 2, 1 and 0, or 9, 8 and 7 when it is asked
# for ten, all with score 0. The guess was that the best k are the beginning of the best K.
#
# Installs pinned public packages into a temporary folder. Ends with 0 as long as bm25s 0.3.16 does this, with 1 once it
# doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check bm25s==0.3.16 numba==0.68.1 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import bm25s
import numba
import numpy as np

print("python", sys.version.split()[0], "bm25s", bm25s.__version__, "numba", numba.__version__, "numpy", np.__version__)
random = np.random.default_rng(0)
words = [f"word{number}" for number in range(300)]
corpus = bm25s.tokenize([" ".join(random.choice(words, 20)) for _ in range(2000)], show_progress=False)
query = bm25s.tokenize(["word5 word7", "nothing here"], show_progress=False)
found = {}
for backend in ("numpy", "numba"):
    index = bm25s.BM25(backend=backend)
    index.index(corpus, show_progress=False)
    for k in (3, 10):
        documents, scores = index.retrieve(query, k=k, show_progress=False)
        found[backend, k] = documents[:, :3].tolist()
        print(f"{backend}, the first 3 of {k}:", found[backend, k], np.round(scores[:, :3], 4).tolist())
same = found["numpy", 3] == found["numpy", 10] and found["numba", 3] != found["numba", 10]
same = same and found["numpy", 3] != found["numba", 3]
sys.exit(0 if same else "bm25s does something else now")
PYTHON
