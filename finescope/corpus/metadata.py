"""Notes that other libraries leave in a table's schema, brought up to date with its columns."""

from __future__ import annotations

import json
from typing import Any

_PANDAS, _DATASETS = b"pandas", b"huggingface"
_DTYPES = {"int64": "int64", "double": "float64", "string": "string"}
"""What ``datasets`` calls the types of columns that this package adds."""


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
        dtype = _DTYPES.get(str(field.type))
        if field.name in known and field.name not in extra.names:
            features[field.name] = known[field.name]
        elif dtype is not None:
            features[field.name] = {"dtype": dtype, "_type": "Value"}
        else:
            return None
    return json.dumps({"info": {"features": features}}).encode()


def joined_fields(schema: Any, extra: Any) -> list[Any]:
    """Return the fields of a schema with others appended, which take the place of those of the same names."""
    return [*(field for field in schema if field.name not in extra.names), *extra]
