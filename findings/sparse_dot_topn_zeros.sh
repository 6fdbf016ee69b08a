#!/usr/bin/env bash
# sparse_dot_topn: a product of two sparse matrices in which one entry adds up to 0 comes out with other rows' numbers in
# its rows, and ends in memory that nobody has written. FineScope isn't run.
#
# Whole numbers, two rows: (1, -1)·(1, 1) is 0, and scipy's product is [[0, -2], [2, 12]]. sp_matmul counts the places
# that the patterns reach, writes only what isn't 0, and leaves the row bounds as they were counted: row 0 gets the 12
# of row 1, and the last place what lay in memory before. sp_matmul_topn does the same where top_n is the number of
# columns, with its other defaults. A process that went on with such a product was seen to end, so what came out is only
# printed here as it lies in memory. The guess was scipy's product.
#
# And top_n without a threshold leaves out what is below 0, though it promises the top n: a row whose products are
# -1 and -2 comes out empty. The guess was both.
#
# Installs pinned public packages into a temporary folder. Ends with 0 as long as sparse_dot_topn 1.2.0 does this, with
# 1 once it doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sparse_dot_topn==1.2.0 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

import numpy as np
import scipy
from scipy.sparse import csr_matrix
from sparse_dot_topn import sp_matmul, sp_matmul_topn

version = importlib.metadata.version("sparse_dot_topn")
print("python", sys.version.split()[0], "numpy", np.__version__, "scipy", scipy.__version__, "sparse_dot_topn", version)
first = csr_matrix(np.array([[1.0, -1.0], [1.0, 1.0]]))
second = csr_matrix(np.array([[1.0, 5.0], [1.0, 7.0]]))
print("scipy:                ", (first @ second).toarray().tolist())
same = True
for name, found in (
    ("sp_matmul", sp_matmul(first, second)),
    ("sp_matmul_topn, top 2", sp_matmul_topn(first, second, 2)),
):
    bounds, written = found.indptr.tolist(), found.data[:3].tolist()
    print(f"{name:<22} row bounds {bounds}, entries {written} and one more")
    same = same and bounds == [0, 2, 4] and written == [-2.0, 12.0, 2.0]
rows = csr_matrix(np.array([[1.0, 0.0], [0.0, 1.0]]))
others = csr_matrix(np.array([[-1.0, -2.0, 0.0], [0.0, 0.0, 3.0]]))
found = sp_matmul_topn(rows, others, 2)
print("all products:         ", (rows @ others).toarray().tolist())
print("top 2 of each row:    ", found.toarray().tolist())
same = same and found.toarray().tolist() == [[0, 0, 0], [0, 0, 3]]
sys.exit(0 if same else "sparse_dot_topn does something else now")
PYTHON
