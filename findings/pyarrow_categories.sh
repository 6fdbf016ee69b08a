#!/usr/bin/env bash
# pyarrow: a valid table that write_table writes without a word, and read_table can't read. FineScope isn't run.
#
# Two tables, each with a dictionary of 100 values and indices of 8 bits, as pandas makes of categories, put together
# with concat_tables: every chunk is valid. In Parquet they have one dictionary of 200 values, and the note of the
# Arrow schema still asks for 8 bits. The guess was that what is written can be read, or that writing refuses it.
#
# Installs pinned public packages into a temporary folder. Ends with 0 as long as pyarrow 26.0.1 does this, with 1 once
# it doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq

print("python", sys.version.split()[0], "pyarrow", pa.__version__)
narrow = pa.dictionary(pa.int8(), pa.string())


def part(number, values):
    column = pa.array([f"{number}-{value}" for value in range(values)]).dictionary_encode().cast(narrow)
    return pa.table({"c": column})


def again(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    try:
        got = pq.read_table(io.BytesIO(file.getvalue()), use_threads=False, pre_buffer=False)
    except pa.ArrowInvalid as error:
        return f"ArrowInvalid: {error}"
    kind = got["c"].type
    kind = kind.index_type if pa.types.is_dictionary(kind) else kind
    return f"{kind}, {'equal' if got.to_pylist() == table.to_pylist() else 'other'} values"


both = pa.concat_tables([part(0, 100), part(1, 100)])
both.validate(full=True)
found = {
    "one part": again(part(0, 100)),
    "two parts of 64 values": again(pa.concat_tables([part(0, 64), part(1, 64)])),
    "two parts of 100 values": again(both),
    "the same, a row group each": again(both, row_group_size=100),
    "the same, without the note": again(both, store_schema=False),
}
for what, got in found.items():
    print(f"{what}: {got}")
refused = "ArrowInvalid: Integer value 128 not in range: -128 to 127"
as_it_was = found["one part"] == "int8, equal values" and found["two parts of 100 values"] == refused
sys.exit(0 if as_it_was else 1)
PYTHON
