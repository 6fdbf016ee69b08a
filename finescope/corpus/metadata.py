"""Notes that other libraries leave in a table's schema, brought up to date with its columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from finescope.errors import InputError

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
    known = _known(note)
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


def together(schemas: Sequence[tuple[str, Any]], fields: Mapping[str, Any]) -> Any:
    """Return the notes of several files for the columns that they have together.

    Of what ``datasets`` says of a column remains what all files say of it whose type it kept. Other notes are
    the first file's.

    Args:
        schemas: (file, its pyarrow schema).
        fields: the pyarrow fields of all files together, by name.

    Raises:
        InputError: a column of classes that have other names, or another order, in another file: the same
            number would stand for two of them.
    """
    notes = dict(schemas[0][1].metadata or {})
    found: dict[str, tuple[str, Any]] = {}
    unsure: set[str] = set()
    for file, schema in schemas:
        for name, feature in _known((schema.metadata or {}).get(_DATASETS)).items():
            if name not in schema.names:
                continue
            first, known = found.setdefault(name, (file, feature))
            _refuse_other_classes(name, (first, _classes(known)), (file, _classes(feature)))
            if known != feature or schema.field(name).type != fields[name].type:
                unsure.add(name)
    notes.pop(_DATASETS, None)
    if found:
        features = {name: feature for name, (_, feature) in found.items() if name not in unsure}
        notes[_DATASETS] = json.dumps({"info": {"features": features}}).encode()
    return notes or None


def _refuse_other_classes(column: str, one: tuple[str, list[str]], other: tuple[str, list[str]]) -> None:
    for number, names in enumerate(zip_longest(one[1], other[1]) if one[1] and other[1] else ()):
        if names[0] != names[1]:
            raise InputError(
                f"column {column!r} holds numbers of classes: {number} stands for {names[0]!r} in {one[0]} "
                f"and for {names[1]!r} in {other[0]}. Convert one of the files, or write .jsonl, where "
                "numbers have no names (--format jsonl)"
            )


def note_of_datasets(schema: Any) -> bytes:
    """Return what ``datasets`` has noted in a schema."""
    return bytes((schema.metadata or {}).get(_DATASETS, b""))


def _known(note: bytes | None) -> dict[str, Any]:
    """Return the features in a note of ``datasets``; none if it is anything else."""
    try:
        features = json.loads(note or b"")["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _classes(feature: Any) -> list[str]:
    """Return the names of classes in a feature, in the order of their numbers."""
    if isinstance(feature, dict):
        if feature.get("_type") == "ClassLabel":
            return list(feature.get("names") or ())
        feature = list(feature.values())
    return [name for part in feature for name in _classes(part)] if isinstance(feature, list) else []


def joined_fields(schema: Any, extra: Any) -> list[Any]:
    """Return the fields of a schema with others appended, which take the place of those of the same names."""
    return [*(field for field in schema if field.name not in extra.names), *extra]
