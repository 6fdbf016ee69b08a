#!/usr/bin/env bash
# pyarrow: whole numbers beside decimals are promoted to a type that pyarrow then casts none of them into. FineScope
# isn't run.
#
# concat_tables(promote_options="permissive") of a column int64 (it holds 3) and one decimal128(9, 2) fails: "Precision
# is not great enough for the result. It should be at least 21". unify_schemas has chosen decimal128(20, 2), a digit too
# few; int32 gets 11 instead of 12, uint64 21 instead of 22. Of int8 and int16 the digits suffice. The guess was that
# tables whose schemas can be unified can be put together.
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
decimals = pa.table({"c": pa.array([1], pa.decimal128(9, 2))})
said = {}
for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64()):
    numbers = pa.table({"c": pa.array([3], kind)})
    chosen = pa.unify_schemas([numbers.schema, decimals.schema], promote_options="permissive").field("c").type
    try:
        found = pa.concat_tables([numbers, decimals], promote_options="permissive")["c"].to_pylist()
        said[str(kind)] = f"{chosen}: {[str(value) for value in found]}"
    except pa.ArrowInvalid as error:
        said[str(kind)] = f"{chosen}: ArrowInvalid: {error}"
for kind, words in said.items():
    print(f"{kind} and decimal128(9, 2) are {words}")
failed = {kind for kind, words in said.items() if "ArrowInvalid: Precision is not great enough" in words}
sys.exit(0 if failed == {"int32", "int64", "uint64"} else 1)
PYTHON
