#!/usr/bin/env bash
# pyarrow: casting a struct that holds a list of nulls gives an array that validate() refuses. FineScope isn't run.
#
# One row holds a list of two nulls (list<null>) and a number; the number alone is cast, from int32 to int64. The list
# comes out with as many nulls as there are rows, one, where it points at two. With two rows or more of such lists it
# has nulls enough, or not, as the lengths fall. The guess was that a member whose type stays as it is stays as it is.
#
# Installs pinned public packages into a temporary folder. Ends with 0 as long as pyarrow 26.0.1 does this, with 1 once
# it doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pyarrow as pa

print("python", sys.version.split()[0], "pyarrow", pa.__version__)


def cast(rows, member):
    kinds = [pa.struct([("a", pa.list_(member)), ("b", number)]) for number in (pa.int32(), pa.int64())]
    array = pa.array(rows, kinds[0])
    array.validate(full=True)
    found = array.cast(kinds[1])
    try:
        found.validate(full=True)
    except pa.ArrowInvalid as error:
        return f"ArrowInvalid: {str(error).rpartition('Invalid: ')[2]}"
    return f"valid, {'equal' if found.to_pylist() == rows else 'other'} values"


row = {"a": [None, None], "b": 1}
said = {
    "one row, list<null>": cast([row], pa.null()),
    "one row, list<int8> of nulls": cast([row], pa.int8()),
    "three rows, list<null> of one null each": cast([{"a": [None], "b": 1}] * 3, pa.null()),
}
for what, found in said.items():
    print(f"{what}: {found}")
broken, *others = said.values()
sys.exit(0 if broken.startswith("ArrowInvalid") and set(others) == {"valid, equal values"} else 1)
PYTHON
