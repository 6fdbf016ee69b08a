"""Arrow columns brought into another type, past what pyarrow casts wrongly."""

from __future__ import annotations

from typing import Any


def recast(column: Any, kind: Any) -> Any:
    """Return a chunked array in another type.

    Some types are brought there part by part, none of which is cast into its own type: where lists of nulls
    stay such inside what changes around them, pyarrow (26.0.1) gives these nulls the number of the lists; of
    views of lists it makes lists whose last end is missing; runs it doesn't cast at all.

    Raises:
        ArrowException, ValueError: a value that doesn't fit, or types that pyarrow can't cast.
    """
    import pyarrow as pa

    if not _by_parts(column.type):
        return column.cast(kind)
    return pa.chunked_array([_recast(_without_offset(chunk), kind) for chunk in column.chunks], kind)


def _without_offset(array: Any) -> Any:
    import pyarrow as pa

    try:
        return array.take(pa.array(range(len(array)), pa.int64()))
    except pa.ArrowNotImplementedError:  # runs
        return pa.concat_arrays([array.slice(at, 1) for at in range(len(array))]) if len(array) else array


def _recast(array: Any, kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if array.type == kind:
        return array
    if types.is_struct(array.type) and types.is_struct(kind):
        members = [
            _recast(array.field(field.name), field.type)
            if array.type.get_field_index(field.name) >= 0
            else pa.nulls(len(array), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(members, fields=list(kind), mask=array.is_null())
    wide = {types.is_list: (pa.ListArray, pa.int32()), types.is_large_list: (pa.LargeListArray, pa.int64())}
    made = next((made for is_list, made in wide.items() if is_list(kind)), None)
    lists = any(is_list(array.type) for is_list in wide)
    if made is None or not (lists or _is_list_view(array.type)):
        return array.cast(kind)
    if lists:
        values, offsets = array.values, array.offsets
    else:
        ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0))
        values, offsets = array.flatten(), pa.concat_arrays([pa.array([0], ends.type), ends])
    values = _recast(values, kind.value_type)
    return made[0].from_arrays(offsets.cast(made[1]), values, type=kind, mask=array.is_null())


def _is_list_view(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list_view(kind) or types.is_large_list_view(kind))


def _by_parts(kind: Any) -> bool:
    """Return whether there is something in a type that pyarrow casts wrongly, or not at all."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(_by_parts(field.type) for field in kind)
    if types.is_run_end_encoded(kind) or _is_list_view(kind):
        return True
    return hasattr(kind, "value_field") and (types.is_null(kind.value_type) or _by_parts(kind.value_type))
