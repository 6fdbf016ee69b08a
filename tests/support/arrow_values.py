"""Values of Arrow columns in one form, with pyarrow alone: to compare columns whose types differ."""

from __future__ import annotations

import math
import re
from typing import Any

import pyarrow as pa


def plain(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Values in one form, whatever the type: exact, and equal for equal values of promoted types."""
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in plain(chunk)]
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage)
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if pa.types.is_struct(kind):
        parts = {f.name: plain(array.field(f.name)) for f in kind}
        rows = [
            {name: part[n] for name, part in parts.items() if part[n] is not None} for n in range(len(array))
        ]
        return [row if there else None for row, there in zip(rows, array.is_valid().to_pylist(), strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [plain(item.values) if item.is_valid else None for item in array]
    if pa.types.is_temporal(kind):
        unit = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}.get(getattr(kind, "unit", ""), 1)
        whole = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist()
        return [None if value is None else ("time", value * unit) for value in whole]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):  # as bytes: they need not be UTF-8
        values = array.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]
    return [canonical(value) for value in array.to_pylist()]


def canonical(value: Any) -> Any:
    """The value with NaN and -0.0 by name: the one equals itself then, the other isn't 0.0."""
    if isinstance(value, float) and (math.isnan(value) or (value == 0 and math.copysign(1, value) < 0)):
        return "NaN" if math.isnan(value) else "-0.0"
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    return [canonical(item) for item in value] if isinstance(value, list) else value


def without_nulls(value: Any) -> Any:
    """The value without keys that hold null, which Arrow gives to every object."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def stored(kind: pa.DataType) -> str:
    """A type's name without what Parquet doesn't keep: seconds, views, what items of lists are called."""
    name = str(kind).replace("_view", "").replace("[s", "[ms").replace("item: ", "element: ")
    return re.sub("indices=u?int[0-9]+", "indices=int32", name.replace(" ('c')", ""))
