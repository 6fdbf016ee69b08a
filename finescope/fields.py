"""Fields of configurations: type, range, default and meaning are said once, where the field is declared.

    k: Size = 32
    \"\"\"Latents kept per token.\"\"\"

From that line come the check (by pydantic, which is imported at the first one), the words of a refusal, and
the option of the command line, whose help is the docstring's first paragraph. A sentence "None: …" or
"Empty: …" there says what that default stands for.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import os
import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate

from finescope.errors import InputError, did_you_mean

_Config = TypeVar("_Config", bound="Configuration")
_Limit = TypeVar("_Limit")


@dataclass(frozen=True)
class Allowed(Predicate):
    """A value for which ``func`` is true; ``wanted`` says in words what that is.

    Attributes:
        names: the values there are, where they can be listed.
        near: names of which one may be meant, where they can't.
    """

    wanted: str = ""
    names: Collection[str] | None = None
    near: Collection[str] = ()


def one_of(names: Collection[str]) -> Allowed:
    """Return the limit of a text that is one of the names of a table."""
    return Allowed(names.__contains__, names=names)


@dataclass(frozen=True)
class Metavar:
    """What stands for the value in help texts."""

    name: str


@dataclass(frozen=True)
class Section:
    """A dictionary with some of the fields of a configuration."""

    kind: type[Configuration]


def _is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: names of files that are not UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_device(name: str) -> bool:
    import torch

    if name == "auto":
        return True
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True


Count = Annotated[int, Ge(0), Lt(2**63)]
Size = Annotated[int, Ge(1), Lt(2**63)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # what scikit-learn takes
Weight = Annotated[float, Ge(0)]
Rate = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]
Cosine = Annotated[float, Ge(-1), Le(1)]
AnyText = Annotated[str, Predicate(_is_unicode)]
Text = Annotated[AnyText, MinLen(1)]
Device = Annotated[str, Allowed(_is_device, "auto or a device as torch names it"), Metavar("DEVICE")]


class Configuration:
    """Base of dataclasses whose values are checked when one is made; conversion to and from dictionaries.

    Numbers of numpy become Python's, paths become texts, and where a list is wanted a single text is a list
    of one.
    """

    def __post_init__(self) -> None:
        checked, wrong = check(type(self), vars(self))
        if wrong:
            raise InputError(f"{type(self).__name__}: {'; '.join(wrong)}")
        vars(self).update(checked)

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[str]:
        """Return what is wrong with values that are right each for itself. Fields may be absent."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain values, ready for JSON or YAML."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls: type[_Config], data: dict[str, Any], drop_extra_fields: bool = False) -> _Config:
        """Build a configuration from a dictionary.

        Args:
            data: field names and values; absent fields take their defaults.
            drop_extra_fields: ignore unknown names instead of refusing them (foreign checkpoints carry some).

        Raises:
            ValueError: an unknown name (unless dropped).
            InputError: values of a wrong type or out of range; all of them are named.
        """
        known = fields_of(cls)
        extra = sorted(str(name) for name in data if name not in known)
        if extra and not drop_extra_fields:
            raise ValueError(f"{cls.__name__} has no field {', '.join(extra)}; it has {', '.join(known)}")
        return cls(**{name: value for name, value in data.items() if name in known})


@dataclass(frozen=True)
class Field:
    """One field of a configuration, as its declaration says.

    Attributes:
        name: of the field.
        base: bool, int, float, str, list (of texts) or dict (a section).
        optional: whether None is allowed.
        limits: what the annotation says besides, of the value or of a list's members.
        default: the default value.
    """

    name: str
    base: type
    optional: bool
    limits: tuple[Any, ...]
    default: Any

    def limit(self, kind: type[_Limit]) -> _Limit | None:
        """Return the limit of a kind, or None."""
        return next((limit for limit in self.limits if isinstance(limit, kind)), None)

    @property
    def choices(self) -> Collection[str] | None:
        """The values to choose from, where they can be listed."""
        limit = self.limit(Allowed)
        return None if limit is None else limit.names

    def allowed(self, none: str = "None") -> str:
        """Return what values are allowed, to follow "must be"; ``none`` is how the user writes None."""
        special = self.limit(Allowed)
        if self.choices is not None:
            words = f"one of {', '.join(self.choices)}"
        elif special is not None:
            words = special.wanted
        else:
            words = f"{_NOUNS[self.base]}{self._range()}"
        return f"{words}, or {none}" if self.optional else words

    def _range(self) -> str:
        low, above, high = self.limit(Ge), self.limit(Gt), self.limit(Le)
        if low and high:
            return f" from {low.ge} to {high.le}"
        return " and".join(
            words
            for words, limit in (
                (f" of at least {low and low.ge}", low),
                (f" above {above and above.gt}", above),
                (f" at most {high and high.le}", high),
                (f" that {'are' if self.base is list else 'is'} not empty", self.limit(MinLen)),
            )
            if limit
        )

    def refusal(self, value: Any, prefix: str = "", none: str = "None") -> str:
        """Return the sentence that refuses a value: field, what is allowed, value, and what may be meant."""
        words = f"{prefix}{self.name} must be {self.allowed(none)}, got {_short(value)}"
        largest, special = self.limit(Lt), self.limit(Allowed)
        if largest and isinstance(value, int) and value >= largest.lt:  # type: ignore[operator]
            words += "; the largest is 2^63 - 1"
        if isinstance(value, str) and not _is_unicode(value):
            words += "; it holds bytes that are not UTF-8"
        names = self.choices or (special.near if special else ())
        meant = did_you_mean(value, names) if isinstance(value, str) else ""
        return f"{words}; {meant}" if meant else words


_NOUNS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
    dict: "a section of names and values",
}


def fields_of(kind: type[Configuration]) -> dict[str, Field]:
    """Return the fields of a configuration by name, in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        field.name: Field(
            field.name,
            *_taken_apart(hints[field.name]),
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
        )
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    }


def _taken_apart(hint: Any) -> tuple[type, bool, tuple[Any, ...]]:
    """Return an annotation's base type, whether None is allowed, and its limits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        base, optional, limits = _taken_apart(arguments[0])
        return base, optional, (*limits, *arguments[1:])
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not type(None))
        base, _, limits = _taken_apart(inner)
        return base, True, limits
    return origin or hint, False, _taken_apart(arguments[0])[2] if origin is list else ()


def check(
    kind: type[Configuration], values: Mapping[str, Any], prefix: str = "", none: str = "None"
) -> tuple[dict[str, Any], list[str]]:
    """Check some or all fields of a configuration.

    Args:
        kind: the configuration.
        values: by name; absent fields are not checked.
        prefix: put before the names in messages, such as ``training.``.
        none: how the user writes None.

    Returns:
        the values as they are to be kept, and a sentence for every name and value that is refused.
    """
    from pydantic import ValidationError

    known = fields_of(kind)
    given = {name: _plain(known[name], value) for name, value in values.items() if name in known}
    wrong = {name: _no_such(name, known, prefix) for name in values if name not in known}
    try:
        given.update(_adapter(kind).validate_python(given))  # type: ignore[arg-type]
    except ValidationError as error:
        for name in {str(details["loc"][0]): None for details in error.errors()}:
            wrong[name] = known[name].refusal(given[name], prefix, none)
    problems = list(wrong.values())
    for name in given:
        section = known[name].limit(Section)
        if section and name not in wrong:
            given[name], found = check(section.kind, given[name], f"{prefix}{name}.", none)
            problems += found
    return given, problems or [f"{prefix}{conflict}" for conflict in kind.conflicts(given)]


@functools.cache
def _adapter(kind: Any) -> Any:
    """Return pydantic's validator of dictionaries with some of the fields."""
    from pydantic import ConfigDict, TypeAdapter, with_config
    from typing_extensions import TypedDict

    hints = typing.get_type_hints(kind, include_extras=True)
    fields: Any = {name: hints[name] for name in fields_of(kind)}
    strict: Any = with_config(ConfigDict(strict=True, allow_inf_nan=False))
    return TypeAdapter(strict(TypedDict(kind.__name__, fields, total=False)))  # type: ignore[operator]


def _plain(field: Field, value: Any) -> Any:
    """Return a value as Python's own type, where a library's scalar, a path or a device stands for one."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if field.base is list and isinstance(value, (str, os.PathLike)):
        value = [value]
    if field.base is list and isinstance(value, (list, tuple)):
        return [os.fspath(each) if isinstance(each, os.PathLike) else each for each in value]
    if field.base is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype"):
        return str(value).removeprefix("torch.")
    return value


def _no_such(name: object, known: Iterable[str], prefix: str) -> str:
    meant = did_you_mean(str(name), known, prefix) or f"known are {', '.join(known)}"
    return f"there is no setting {prefix}{name}; {meant}"


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 80 else f"{words[:60]}… ({type(value).__name__})"


@functools.cache
def docs_of(kind: type[Configuration]) -> dict[str, tuple[str, str | None]]:
    """Return, by field, its docstring's first paragraph and what the default stands for, if it says so."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = declared.body if isinstance(declared, ast.ClassDef) else []
    found = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value.value if _is_text(after) else ""  # type: ignore[attr-defined]
            words = " ".join(text.replace("``", "").partition("\n\n")[0].split())
            stands = re.search(r" ?\b(?:None|Empty): (.*?)\.(?= |$)", words)
            if stands:
                words = f"{words[: stands.start()]}{words[stands.end() :]}"
            found[field.target.id] = words.strip(), stands[1] if stands else None
    return found


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
