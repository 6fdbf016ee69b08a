"""Where rows stand in a corpus' files of lines, kept for later looks at a few of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from finescope.corpus import Corpus
from finescope.corpus.lines import Mark
from finescope.storage.files import atomic_path, reading

_KEY = b"finescope"
_COLUMNS = ("file", "row", "offset", "line")


def write_marks(path: Path, corpus: Corpus) -> None:
    """Write the marks that a pass over a corpus has left, if it has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = corpus.files
    marks = [
        (number, mark.row, mark.offset, mark.line) for number, file in enumerate(files) for mark in file.marks
    ]
    if not marks:
        return
    columns = np.array(marks, np.int64).T
    about = {"stamps": [file.stamp() if file.marks else None for file in files]}
    table = pa.table(dict(zip(_COLUMNS, columns, strict=True)), metadata={_KEY: json.dumps(about)})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_marks(path: Path, corpus: Corpus) -> None:
    """Give the files of a corpus the marks that were written of them.

    Raises:
        StoreError: the file is damaged.
    """
    import pyarrow.parquet as pq

    if not path.exists():
        return
    with reading(path, "remove it: rows are then looked for from the beginning of their file"):
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
        number, *places = (table[name].to_numpy() for name in table.column_names)
    for at, (file, stamp) in enumerate(zip(corpus.files, about.get("stamps", []), strict=False)):
        if stamp is not None:
            low, high = np.searchsorted(number, [at, at + 1])
            found = zip(*(column[low:high].tolist() for column in places), strict=True)
            size, of_time = stamp
            file.keep_marks((size, tuple(of_time)), [Mark(*place) for place in found])
