#!/usr/bin/env bash
# Three things that libraries do with valid input and that surprised us while rows were copied and read; FineScope
# isn't run. Installs pinned public packages into a temporary folder, prints versions and what was seen, and fails if
# that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'EOF'
import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq

print("python", sys.version.split()[0], "pyarrow", pa.__version__)
changed = []


def seen(what, got, expected):
    print(f"{what}\n    {got!r}")
    if got != expected:
        changed.append(f"{what}: {got!r}, was {expected!r}")


def error(run):
    try:
        return run()
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}".splitlines()[0]


# 1. A valid Parquet file with two row groups and a dictionary inside a struct, as pyarrow itself writes it.
column = pa.StructArray.from_arrays([pa.array(["a", "b"]).dictionary_encode()], ["k"])
file = io.BytesIO()
pq.write_table(pa.table({"c": column}), file, row_group_size=1)
rows = [{"k": "a"}, {"k": "b"}]
seen("1. read_table", pq.read_table(io.BytesIO(file.getvalue()))["c"].to_pylist(), rows)
refused = "ArrowNotImplementedError: Nested data conversions not implemented for chunked array outputs"
seen("   ParquetFile.read", error(lambda: pq.ParquetFile(file).read()["c"].to_pylist()), refused)
seen("   ParquetFile.iter_batches", error(lambda: list(pq.ParquetFile(file).iter_batches())), refused)
each = [pq.ParquetFile(file).read_row_group(group)["c"].to_pylist()[0] for group in (0, 1)]
seen("   each row group by itself", each, rows)

# 2. True among floats becomes 1.0; among whole numbers it is refused. What is written differs from what was given.
seen("2. array([1.5, True])", pa.array([1.5, True]).to_pylist(), [1.5, 1.0])
seen("   array([1, True])", error(lambda: pa.array([1, True])), "ArrowTypeError: Expected integer, got bool")
rows = pa.Table.from_pylist([{"v": 0.5}, {"v": False}])["v"].to_pylist()
seen("   Table.from_pylist", rows, [0.5, 0.0])

# 3. A safe cast of a time beyond the year 32767 puts the text of an error into the data, and raises nothing.
far = pa.array([0, 10**12], pa.timestamp("s"))
cast = far.cast(pa.string(), safe=True).to_pylist()
seen("3. timestamps as strings", cast, ["1970-01-01 00:00:00", "<value out of range: 1000000000000>"])

if changed:
    sys.exit("not as it was:\n" + "\n".join(changed))
EOF
