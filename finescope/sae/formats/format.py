"""What every format says of itself, and the facts that its files leave out."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from finescope.errors import InputError
from finescope.sae.formats.checkpoint import Checkpoint

_Value = TypeVar("_Value", bool, int, float, str)


class Facts:
    """What a caller says about an SAE because its files don't. What nobody asks for is refused."""

    def __init__(
        self, given: Mapping[str, Any], public: Mapping[str, Any] | None = None, *, ask: bool = True
    ) -> None:
        """Hold what the caller gave and, below it, what is known of a public SAE of that name.

        Args:
            given, public: by name.
            ask: whether what nobody says is an error; else it is noted in ``missing``.
        """
        self._given, self._public = dict(given), dict(public or {})
        self._asked: set[str] = set()
        self._ask = ask
        self.missing: dict[str, str] = {}

    def get(self, name: str, kind: type[_Value], default: _Value | None = None) -> _Value | None:
        """Return a fact, or the default.

        Raises:
            InputError: it isn't of the kind.
        """
        self._asked.add(name)
        value = self._given.get(name, self._public.get(name, default))
        if value is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{name} must be {kind.__name__}, got {value!r}")
        return value

    def given(self, name: str, kind: type[_Value]) -> _Value | None:
        """Return a fact that the caller himself gave, if he did."""
        return self.get(name, kind) if name in self._given else None

    def need(self, name: str, kind: type[_Value], place: Path, meaning: str) -> _Value:
        """Return a fact without which the SAE can't be read.

        Raises:
            InputError: nobody says it; names the argument.
        """
        value = self.get(name, kind)
        if value is None and not self._ask:
            self.missing[name] = meaning
            return kind(1)
        if value is None:
            raise InputError(
                f"{place} doesn't say {meaning}, and without it the codes would be wrong; give it as {name}=…"
                f" (load_sae(…, {name}=…); on the command line --set sae_facts.{name}=…)"
            )
        return value

    def refuse_unused(self, format: str) -> None:
        """Refuse facts that reading this format never asked for."""
        unused = sorted(set(self._given) - self._asked)
        if unused:
            known = ", ".join(sorted(self._asked)) or "none"
            raise InputError(
                f"{', '.join(unused)} means nothing for an autoencoder in {format}'s format (asked for:"
                f" {known})"
            )


@dataclass(frozen=True)
class Format:
    """One layout of SAEs on disk."""

    name: str
    """As it is chosen and shown."""
    mark: str
    """The file that gives it away: a path relative to the folder of the SAE or, if ``single``, a pattern of
    the SAE's one file."""
    read: Callable[[Path, Facts], Checkpoint]
    """Turns a folder (or file) into a checkpoint."""
    recognises: Callable[[Path], bool] = field(default=lambda path: True)
    """Tells a place from those of other formats with the same mark."""
    single: bool = False
    beside: tuple[str, ...] = ()
    """Further files that it reads, relative to the folder that it or its one file is in."""
    write: Callable[[Checkpoint, Path], None] | None = None

    def place_of(self, file: str) -> str | None:
        """Return the name of the place that a file below a root gives away; "" is the root itself."""
        if self.single:
            return file if fnmatch.fnmatchcase(file.rpartition("/")[2], self.mark) else None
        if file == self.mark:
            return ""
        return file[: -len(self.mark) - 1] if file.endswith(f"/{self.mark}") else None
