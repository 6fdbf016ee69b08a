"""Notes that other libraries leave in a table's schema, brought up to date with its columns."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

_PANDAS, _DATASETS = b"pandas", b"huggingface"
_DTYPES = {"halffloat": "float16", "float": "float32", "double": "float64"}
"""What ``datasets`` calls the plain types that pyarrow calls otherwise."""


def for_output(schema: Any, extra: Any) -> Any:
    """Return a pyarrow schema with columns appended (or replaced), and notes that fit them.

    ``datasets`` keeps a feature for every column and refuses a file whose columns are others: new ones are
    added. pandas' notes describe an index that selected rows no longer have.
    """
    import pyarrow as pa

    metadata = dict(schema.metadata or {})
    metadata.pop(_PANDAS, None)
    if _DATASETS in metadata:
        features = _features(metadata.pop(_DATASETS), schema, extra)
        if features is not None:
            metadata[_DATASETS] = features
    return pa.schema(joined_fields(schema, extra), metadata=metadata or None)


def _features(note: bytes, schema: Any, extra: Any) -> bytes | None:
    """Return the note of ``datasets`` with the features of the new columns; None if it doesn't fit the
    old."""
    try:
        known = json.loads(note)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(known, dict):
        return None
    features: dict[str, Any] = {}
    for field in joined_fields(schema, extra):
        dtype = _dtype(field.type)
        if field.name in known and field.name not in extra.names:
            features[field.name] = known[field.name]
        elif dtype is not None:
            features[field.name] = {"dtype": dtype, "_type": "Value"}
        else:
            return None
    return json.dumps({"info": {"features": features}}).encode()


def _dtype(kind: Any) -> str | None:
    from pyarrow import types

    text = types.is_string(kind) or types.is_large_string(kind)
    if not (text or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)):
        return str(kind) if types.is_timestamp(kind) else None
    return _DTYPES.get(str(kind), str(kind))


def without_features(metadata: Any, names: Collection[str]) -> Any:
    """Return a schema's notes, of which that of ``datasets`` says nothing of columns whose types have
    changed."""
    if not (names and metadata and _DATASETS in metadata):
        return metadata
    try:
        note = json.loads(metadata[_DATASETS])
        features = {name: kind for name, kind in note["info"]["features"].items() if name not in names}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {key: value for key, value in metadata.items() if key != _DATASETS}
    note["info"]["features"] = features
    return {**metadata, _DATASETS: json.dumps(note).encode()}


def joined_fields(schema: Any, extra: Any) -> list[Any]:
    """Return the fields of a schema with others appended, which take the place of those of the same names."""
    return [*(field for field in schema if field.name not in extra.names), *extra]
