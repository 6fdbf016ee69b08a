"""Times in Parquet's old INT96, as Spark, Hive and Impala write them: days and nanoseconds, for any year.

pyarrow reads them as nanoseconds since 1970, in which there is no room beyond the years 1677 to 2262: a date
of 9999-12-31, which stands for "never" in many tables, silently comes out as one of 1816.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from finescope.errors import InputError

_ROOM = (2**63 - 1) // 1000


def unit_for(open_file: Callable[[str | None], Any], name: str) -> str | None:
    """Return the unit in which all INT96 times of a file can be read exactly; None for pyarrow's own.

    Args:
        open_file: opens the file with ``coerce_int96_timestamp_unit`` set.
        name: the file, for messages.

    Raises:
        InputError: the file holds both nanoseconds and times that have no room in them.
    """
    with open_file(None) as fine:
        columns = [
            fine.schema.column(number).path
            for number in range(len(fine.schema))
            if fine.schema.column(number).physical_type == "INT96"
        ]
        if not columns:
            return None
        fits = exact = True
        with open_file("us") as coarse:
            for group in range(fine.metadata.num_row_groups):
                pair = (file.read_row_group(group, columns=columns) for file in (fine, coarse))
                for nanoseconds, microseconds in zip(*map(_values, pair), strict=True):
                    fits = fits and not (np.abs(microseconds) > _ROOM).any()
                    # Modulo 2^64, as nanoseconds without room wrap round.
                    exact = exact and bool(
                        (microseconds.view(np.uint64) * np.uint64(1000) == nanoseconds.view(np.uint64)).all()
                    )
    if fits:
        return None
    if not exact:
        raise InputError(
            f"{name}: {', '.join(columns)} of type INT96 holds nanoseconds as well as times beyond the years "
            "1677 to 2262, which no type of Arrow does; write the file again with another type"
        )
    return "us"


def _values(table: Any) -> Iterator[Any]:
    """Yield the times in a table, wherever they are nested, as int64."""
    import pyarrow as pa

    for column in table.columns:
        for leaf in _leaves(column.combine_chunks()):
            yield leaf.drop_null().cast(pa.int64()).to_numpy(zero_copy_only=False)


def _leaves(array: Any) -> Iterator[Any]:
    from pyarrow import types

    if types.is_struct(array.type):
        for part in array.flatten():
            yield from _leaves(part)
    elif types.is_map(array.type):
        yield from _leaves(array.keys)
        yield from _leaves(array.items)
    elif types.is_timestamp(array.type):
        yield array
    elif types.is_nested(array.type):
        yield from _leaves(array.flatten())
