#!/usr/bin/env bash
# pyarrow: casting a view of lists (list_view) to lists loses the last list, or ends the process. FineScope isn't run.
#
# Four lists of whole numbers as list_view<int64>, valid by pyarrow's own check, are cast to list<int64>. What comes out
# lacks the last end: the last list is empty, or whatever lies in memory makes of it, without a word; validate() refuses
# the array. Of the last three of them, a slice, the cast gives an array whose items abort the process when they are
# read ("Check failed: Slice offset ... greater than array length"). The guess was that a cast gives the same lists.
#
# Installs pinned public packages into a temporary folder. Ends with 0 as long as pyarrow 26.0.1 does this, with 1 once
# it doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
cat >"$folder/cast.py" <<'PYTHON'
import sys

import pyarrow as pa

lists = pa.array([[1, 2], [3], [4, 5, 6], [7]], pa.list_view(pa.int64()))
lists.validate(full=True)
found = lists.slice(int(sys.argv[1])).cast(pa.list_(pa.int64()))
try:
    found.validate(full=True)
    print("valid")
except pa.ArrowInvalid as error:
    print("ArrowInvalid:", error)
print([item.as_py() for item in found])
PYTHON
"$folder/venv/bin/python" -c 'import sys, pyarrow; print("python", sys.version.split()[0], "pyarrow", pyarrow.__version__)'
whole=$("$folder/venv/bin/python" "$folder/cast.py" 0 || true)
echo "all four: $whole"
sliced=0
"$folder/venv/bin/python" "$folder/cast.py" 1 >"$folder/said" 2>&1 || sliced=$?
echo "the last three: $(tail -n 2 "$folder/said"), exit status $sliced"
[[ "$whole" == *"ArrowInvalid: Offsets buffer size"* && "$whole" != *"[7]"* && "$sliced" -ne 0 ]]
