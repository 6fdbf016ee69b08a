#!/usr/bin/env bash
# faiss.knn: the same query finds another nearest row when it is asked together with many others.
#
# Whole numbers from 10000 to 10009, which float32 holds exactly; every squared distance is below 2^24. Asked alone,
# the query gets the exact distances (583 to row 298). Among 3000 queries it gets distance 0 to row 0, which is farther
# away: from some amount of work on, faiss computes ‖q‖² - 2⟨q,c⟩ + ‖c‖² in float32.
#
# Ends with 0 as long as faiss-cpu 1.15.1 does this, with 1 once it doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "faiss-cpu==1.15.1" "numpy>=2,<3"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import faiss
import numpy as np

random = np.random.default_rng(0)
corpus = 10_000 + random.integers(0, 10, (1000, 64))
queries = 10_000 + random.integers(0, 10, (3000, 64))
exact = ((queries[0] - corpus) ** 2).sum(axis=1)
nearest = np.argsort(exact, kind="stable")[:3]
print("faiss", faiss.__version__)
print("exact, in whole numbers:     ", exact[nearest].tolist(), "rows", nearest.tolist())
found = {}
for count in (1, 3000):
    distances, rows = faiss.knn(queries[:count].astype("f4"), corpus.astype("f4"), 3)
    found[count] = distances[0].tolist(), rows[0].tolist()
    print(f"faiss.knn, one of {count:4} queries:", found[count][0], "rows", found[count][1])
alone = found[1] == (exact[nearest].tolist(), nearest.tolist())
sys.exit(0 if alone and found[3000] != found[1] and exact[found[3000][1][0]] > exact.min() else 1)
PYTHON
