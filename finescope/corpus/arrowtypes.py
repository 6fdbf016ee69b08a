"""Arrow types: one for several files, what a format can hold, and values as JSON has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from finescope.corpus.metadata import together as notes_together
from finescope.errors import InputError


def unified(schemas: Sequence[tuple[str, Any]]) -> Any:
    """Return the one schema that holds the rows of all files: columns in the order in which they turn up.

    Types are promoted where every value can go along (null to anything, int32 to int64, a struct or list
    gains fields). Values are tried separately, since some (int64 to double) may fail for one of them. Times
    in different zones go into UTC: the instants are the same, and a column has one zone.

    Args:
        schemas: (file, its pyarrow schema).

    Raises:
        InputError: a column whose types don't go together, or a name that occurs twice; names column and
            files.
    """
    import pyarrow as pa

    fields: dict[str, Any] = {}
    first: dict[str, str] = {}
    for file, schema in schemas:
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise InputError(f"{file}: two columns are called {name!r}; rename one of them")
        for field in schema:
            if field.name not in fields:
                fields[field.name], first[field.name] = field, file
                continue
            old = fields[field.name]
            if old.type != field.type:
                together = promoted(old.type, field.type)
                if together is None:
                    remedy = (
                        "Times without a zone are no instants: give them the zone that they are in"
                        if promoted(_without_zones(old.type), _without_zones(field.type)) is not None
                        else "Convert one of the files"
                    )
                    raise InputError(
                        f"column {field.name!r} is {old.type} in {first[field.name]} and {field.type} in "
                        f"{file}; one Parquet file can't hold both. {remedy}, or write .jsonl "
                        "(--format jsonl)"
                    )
                fields[field.name] = old.with_type(together)
            if field.nullable and not old.nullable:
                fields[field.name] = fields[field.name].with_nullable(True)
    everywhere = set.intersection(*(set(schema.names) for _, schema in schemas))
    chosen = [
        field if name in everywhere else field.with_nullable(True)  # null where a file lacks it
        for name, field in fields.items()
    ]
    return pa.schema(chosen, metadata=notes_together(schemas, fields))


def promoted(one: Any, other: Any) -> Any:
    """Return the type that holds the values of both, or None."""
    bare = _bare(one), _bare(other)
    for pair in ((one, other), bare, (_met(*bare), _met(*reversed(bare)))):
        if pair[0] == pair[1]:
            return pair[0]
        found = _promoted(*pair)
        if found is not None:
            return found
    return None


def _met(one: Any, other: Any) -> Any:
    """Return a type that can go together with another of the same build.

    Times are in UTC where those of the other have another zone, whole numbers are decimals where the other's
    are: pyarrow (26.0.1) gives both together a decimal with a digit too few for the numbers.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_struct(one) and types.is_struct(other):
        return pa.struct(
            [
                field.with_type(_met(field.type, other.field(field.name).type))
                if other.get_field_index(field.name) >= 0
                else field
                for field in one
            ]
        )
    if types.is_map(one) and types.is_map(other):
        return pa.map_(
            _met(one.key_type, other.key_type), one.item_field.with_type(_met(one.item_type, other.item_type))
        )
    if hasattr(one, "value_field") and hasattr(other, "value_field"):
        return _list_like(one, _met(one.value_type, other.value_type))
    if types.is_integer(one) and types.is_decimal(other):
        return pa.decimal128(_digits(one), 0)
    if not (types.is_timestamp(one) and types.is_timestamp(other)):
        return one
    return pa.timestamp(one.unit, "UTC") if one.tz and other.tz and one.tz != other.tz else one


def _digits(kind: Any) -> int:
    """Return how many digits the whole numbers of a type may have."""
    from pyarrow import types

    return len(str(2 ** (kind.bit_width - types.is_signed_integer(kind)) - 1))


def _without_zones(kind: Any) -> Any:
    import pyarrow as pa
    from pyarrow import types

    return _rebuilt(_bare(kind), lambda leaf: pa.timestamp(leaf.unit) if types.is_timestamp(leaf) else leaf)


def zones(kind: Any) -> set[str]:
    """Return the time zones in a type."""
    from pyarrow import types

    leaves = (leaf for leaf, _ in _leaves(_bare(kind), _bare(kind)))
    return {leaf.tz for leaf in leaves if types.is_timestamp(leaf) and leaf.tz is not None}


def _promoted(one: Any, other: Any) -> Any:
    import pyarrow as pa

    try:
        both = [pa.schema([pa.field("c", kind)]) for kind in (one, other)]
        found = pa.unify_schemas(both, promote_options="permissive").field("c").type
    except pa.ArrowException:
        return None
    # Bytes aren't text, a decimal's digits don't fit into a double: those promotions change values.
    changed = [kind for kind in (one, other) for pair in _leaves(kind, found) if _changes(*pair)]
    return None if changed else _optional(found, one, other)


def _optional(found: Any, *kinds: Any) -> Any:
    """Return a type in which the members that one of its files' types lacks may be null."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_struct(found):
        return pa.struct(
            [
                field.with_type(
                    _optional(field.type, *(kind.field(field.name).type for kind in _having(kinds, field)))
                ).with_nullable(field.nullable or len(_having(kinds, field)) < len(kinds))
                for field in found
            ]
        )
    lists = [kind for kind in kinds if hasattr(kind, "value_field")]
    if hasattr(found, "value_field") and not types.is_dictionary(found):
        return _list_like(found, _optional(found.value_type, *(kind.value_type for kind in lists)))
    return found


def _having(kinds: Sequence[Any], field: Any) -> list[Any]:
    from pyarrow import types

    return [kind for kind in kinds if types.is_struct(kind) and kind.get_field_index(field.name) >= 0]


def _changes(one: Any, found: Any) -> bool:
    from pyarrow import types

    text = types.is_string(one) or types.is_large_string(one)
    if types.is_integer(one) and types.is_decimal(found):
        return bool(found.precision - found.scale < _digits(one))
    return (text and _is_bytes(found)) or (types.is_decimal(one) and types.is_floating(found))


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or str(kind) == "binary_view"
    )


def _leaves(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of types without parts in two types of the same build."""
    from pyarrow import types

    if types.is_struct(one) and types.is_struct(other):
        for field in one:
            if other.get_field_index(field.name) >= 0:
                yield from _leaves(field.type, other.field(field.name).type)
    elif types.is_map(one) and types.is_map(other):
        yield from _leaves(one.key_type, other.key_type)
        yield from _leaves(one.item_type, other.item_type)
    elif hasattr(one, "value_type") and hasattr(other, "value_type"):
        yield from _leaves(one.value_type, other.value_type)
    else:
        yield one, other


def _rebuilt(kind: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a type with ``leaf`` applied to its parts that have none themselves."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_struct(kind):
        return pa.struct([field.with_type(_rebuilt(field.type, leaf)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_rebuilt(kind.key_type, leaf), _rebuilt(kind.item_type, leaf))
    if (
        isinstance(kind, pa.BaseExtensionType)
        or types.is_dictionary(kind)
        or not hasattr(kind, "value_field")
    ):
        return leaf(kind)
    return _list_like(kind, _rebuilt(kind.value_type, leaf))


def decoded(kind: Any) -> Any:
    """Return a type with the values of dictionaries in their places."""
    from pyarrow import types

    return _rebuilt(kind, lambda leaf: leaf.value_type if types.is_dictionary(leaf) else leaf)


def names_null(array: Any) -> bool:
    """Return whether a dictionary in an array has an entry for null, which Parquet's writer refuses."""
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        return bool(array.dictionary.null_count)
    if types.is_struct(kind):
        return any(names_null(array.field(at)) for at in range(kind.num_fields))
    return bool((types.is_list(kind) or types.is_large_list(kind)) and names_null(array.values))


def _list_like(kind: Any, values: Any) -> Any:
    """Return a type of lists as another is, of other values."""
    import pyarrow as pa
    from pyarrow import types

    item = kind.value_field.with_type(values)
    if types.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return (pa.large_list if str(kind).startswith("large") else pa.list_)(item)


def _bare(kind: Any) -> Any:
    """Return a type's plain form: no dictionary, no extension, no view, no runs."""
    import pyarrow as pa
    from pyarrow import types

    def leaf(kind: Any) -> Any:
        if isinstance(kind, pa.BaseExtensionType):
            return _bare(kind.storage_type)
        if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
            return _bare(kind.value_type)
        return _without_view(kind)

    return _rebuilt(kind, leaf)


def always_fits(one: Any, other: Any) -> bool:
    """Return whether every value of a type fits into another, to which it was promoted."""
    from pyarrow import types

    if types.is_null(one) or _bare(one) == _bare(other):
        return True
    if types.is_struct(one) and types.is_struct(other):
        return all(
            other.get_field_index(field.name) >= 0 and always_fits(field.type, other.field(field.name).type)
            for field in one
        )
    lists = (types.is_list, types.is_large_list)
    if any(is_list(one) for is_list in lists) and any(is_list(other) for is_list in lists):
        return always_fits(one.value_type, other.value_type)
    if types.is_integer(one) and types.is_integer(other):
        wider = other.bit_width > one.bit_width
        return bool(wider and (types.is_signed_integer(other) or types.is_unsigned_integer(one)))
    if types.is_floating(one) and types.is_floating(other):
        return bool(other.bit_width >= one.bit_width)
    return bool(types.is_string(one) and types.is_large_string(other))


def storable(schema: Any) -> Any:
    """Return the schema that Parquet keeps of one: seconds become milliseconds, views plain strings or lists.

    Runs become their values; indices of dictionaries get 32 bits.

    Raises:
        InputError: a column of a type that Parquet has no place for; names it.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pa.schema(
        [field.with_type(_rebuilt(field.type, _kept)) for field in schema], metadata=schema.metadata
    )
    for field, kept in zip(schema, found, strict=True):
        try:
            pq.ParquetWriter(io.BytesIO(), pa.schema([kept])).close()
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"column {field.name!r} is {field.type}, which Parquet can't hold ({error}); write .jsonl "
                "(--format jsonl)"
            ) from error
    return found


def _kept(kind: Any) -> Any:
    import pyarrow as pa
    from pyarrow import types

    if types.is_run_end_encoded(kind):
        return _rebuilt(kind.value_type, _kept)
    if types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if types.is_dictionary(kind) and kind.index_type.bit_width < 32:
        # Rows bring dictionaries of their own along: more values together than narrow indices can tell apart,
        # which pyarrow writes all the same, and then can't read.
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
    return pa.time32("ms") if types.is_time32(kind) else _without_view(kind)


def _without_view(kind: Any) -> Any:
    import pyarrow as pa

    return {"string_view": pa.string(), "binary_view": pa.binary()}.get(str(kind), kind)


def without_json_form(kind: Any) -> Any:
    """Return the part of a type that JSON has no form for (bytes), or None."""
    import pyarrow as pa
    from pyarrow import types

    if isinstance(kind, pa.BaseExtensionType):
        return None if is_uuid(kind) else without_json_form(kind.storage_type)
    if types.is_struct(kind):
        return next(filter(None, (without_json_form(field.type) for field in kind)), None)
    if types.is_map(kind):
        return without_json_form(kind.key_type) or without_json_form(kind.item_type)
    if hasattr(kind, "value_type"):
        return without_json_form(kind.value_type)
    return kind if _is_bytes(kind) else None


def is_uuid(kind: Any) -> bool:
    """Return whether a type is Arrow's of UUIDs."""
    return str(kind) == "extension<arrow.uuid>"


def is_bool8(kind: Any) -> bool:
    """Return whether a type is Arrow's of truth values in a byte each."""
    return str(kind) == "extension<arrow.bool8>"
