#!/usr/bin/env bash
# scikit-learn: DBSCAN and NearestNeighbors on times in seconds call a point noise that lies 5 s from two others.
#
# Nine whole numbers near 1.7e9 (seconds since 1970), exact in float64. With eps=10 the time 605 s after the first has
# neighbours at 600 and 610. algorithm="brute", which DBSCAN's "auto" takes for so few rows, leaves it out, and
# NearestNeighbors(algorithm="brute") says that rows 5 and 10 s apart are 0 s apart: it computes
# ‖x‖² - 2⟨x,y⟩ + ‖y‖², whose terms are 2.9e18. "kd_tree" and "ball_tree" give the exact answer.
#
# Ends with 0 as long as scikit-learn 1.9.1 does this, with 1 once it doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "scikit-learn==1.9.1" "numpy>=2,<3"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import sklearn
from sklearn.cluster import DBSCAN
from sklearn.neighbors import NearestNeighbors

seconds = np.array([0, 5, 10, 600, 605, 610, 1200, 1800, 1805])
rows = (1_700_000_000 + seconds)[:, None]
near = (abs(seconds[:, None] - seconds) <= 10).sum(axis=1) > 1
print("scikit-learn", sklearn.__version__)
print("has a neighbour within 10 s:", near.astype(int).tolist())
labels = {}
for name in ("auto", "brute", "kd_tree"):
    labels[name] = DBSCAN(eps=10, min_samples=2, algorithm=name).fit_predict(rows)
    found = NearestNeighbors(n_neighbors=2, algorithm=name).fit(rows).kneighbors(rows[:3])[0]
    print(f"{name:8} DBSCAN labels {labels[name].tolist()}, nearest two of the first rows: {found.tolist()}")
right = (labels["kd_tree"] >= 0) == near
wrong = (labels["auto"] >= 0) != near
sys.exit(0 if right.all() and wrong.any() else 1)
PYTHON
