"""Arrow columns as plain values that JSON has: exact, for any date and to the last nanosecond.

pyarrow's own way to Python values ends at the year 9999 and at microseconds, and its casts to strings write
``<value out of range>`` beyond the year 32767.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from finescope.corpus.arrowtypes import is_bool8, is_uuid

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400


def json_values(column: Any) -> list[Any]:
    """Return a pyarrow array's values: text for dates, times, durations (ISO 8601), decimals and UUIDs, lists
    of pairs for maps with keys other than text; NaN and infinities as floats.
    """
    import pyarrow as pa
    from pyarrow import types

    if isinstance(column, pa.ChunkedArray):
        return list(itertools.chain.from_iterable(map(json_values, column.chunks)))
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        if is_uuid(kind):
            return [None if value is None else str(value) for value in column.to_pylist()]
        return list(column.to_pylist()) if is_bool8(kind) else json_values(column.storage)
    if types.is_dictionary(kind):
        return json_values(column.dictionary_decode())
    if types.is_struct(kind):
        parts = [json_values(column.field(position)) for position in range(kind.num_fields)]
        names = [field.name for field in kind]
        rows = zip(*parts, strict=True) if parts else itertools.repeat((), len(column))
        return [
            dict(zip(names, row, strict=True)) if there else None
            for there, row in zip(_valid(column), rows, strict=True)
        ]
    if types.is_map(kind):
        return _maps(column)
    if hasattr(kind, "value_field"):
        return [None if item is None else json_values(item) for item in map(_items, column)]
    if types.is_temporal(kind) and not types.is_interval(kind):
        return _each(column, _temporal(kind))
    if types.is_decimal(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _valid(column: Any) -> list[bool]:
    return list(column.is_valid().to_pylist())


def _items(scalar: Any) -> Any:
    return scalar.values if scalar.is_valid else None


def _maps(column: Any) -> list[Any]:
    from pyarrow import types

    found: list[Any] = []
    for scalar in column:
        if not scalar.is_valid:
            found.append(None)
            continue
        keys, items = json_values(scalar.values.field(0)), json_values(scalar.values.field(1))
        as_object = types.is_string(column.type.key_type) and len(set(keys)) == len(keys)
        pairs = zip(keys, items, strict=True)
        found.append(dict(pairs) if as_object else [list(pair) for pair in pairs])
    return found


def _each(column: Any, shown: Callable[[int], str]) -> list[str | None]:
    import pyarrow as pa

    whole = pa.int32() if column.type.bit_width == 32 else pa.int64()
    return [None if value is None else shown(value) for value in column.cast(whole).to_pylist()]


def _temporal(kind: Any) -> Callable[[int], str]:
    from pyarrow import types

    if types.is_date32(kind):
        return _date
    if types.is_date64(kind):
        return lambda value: _date(value // (_DAY * 1000))
    unit = _PER_SECOND[kind.unit]
    if types.is_duration(kind):
        return lambda value: _duration(value, unit)
    if types.is_time(kind):
        return lambda value: _time(value, unit)
    zone = "" if kind.tz is None else "+00:00"
    return lambda value: f"{_date(value // (unit * _DAY))}T{_time(value % (unit * _DAY), unit)}{zone}"


def _date(days: int) -> str:
    """Return a day counted from 1970-01-01 as a date of the proleptic Gregorian calendar."""
    # Days from 0000-03-01, so that a leap day is the last of its year.
    days += 719_468
    era, day = divmod(days, 146_097)
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    year += 400 * era + (month >= 10)
    month = month - 9 if month >= 10 else month + 3
    sign = "-" if year < 0 else "+" if year > 9999 else ""  # as ISO 8601 wants it
    return f"{sign}{abs(year):04d}-{month:02d}-{day + 1:02d}"


def _time(value: int, unit: int) -> str:
    seconds, part = divmod(value, unit)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{_fraction(part, unit)}"


def _duration(value: int, unit: int) -> str:
    seconds, part = divmod(abs(value), unit)
    return f"{'-' if value < 0 else ''}PT{seconds}{_fraction(part, unit)}S"


def _fraction(part: int, unit: int) -> str:
    return f".{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""


def table_records(table: Any) -> Iterable[dict[str, Any]]:
    """Yield a pyarrow table's rows as plain objects."""
    columns = [json_values(column) for column in table.columns]
    names = table.column_names
    for row in zip(*columns, strict=True) if columns else itertools.repeat((), table.num_rows):
        yield dict(zip(names, row, strict=True))
