"""Which stages of a run are finished, and with what inputs: killed runs go on, changed inputs are noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finescope.errors import StoreError
from finescope.storage.files import read_json, write_json
from finescope.storage.identity import differences, sha256_json

FOLDER = "stages"
_SHOWN = 3


class Ledger:
    """Notes about the stages of one output folder, one small JSON file per stage."""

    def __init__(self, out: Path, above: Ledger | None = None):
        """Open the ledger of an output folder; nothing is read or written yet.

        Args:
            out: the folder.
            above: where the stages are noted that this folder has from another.
        """
        self.out, self._above = out, above

    def finished(self, stage: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> bool:
        """Return whether a stage was finished with these inputs and all its outputs are still there."""
        note = self._read(stage)
        return (
            note is not None
            and note["key"] == sha256_json(dict(inputs))
            and bool(note.get("finished"))
            and all((self.out / name).exists() for name in outputs)
        )

    def changes(self, stage: str, inputs: Mapping[str, Any]) -> str | None:
        """Return in words what is other than when the stage was begun; None if nothing is, or it wasn't."""
        note = self._read(stage)
        if note is None or note["key"] == sha256_json(dict(inputs)):
            return None
        found = differences(note.get("inputs", {}), dict(inputs))
        return "; ".join(map(str, found[:_SHOWN])) or "its notes differ"

    def begin(self, stage: str, inputs: Mapping[str, Any]) -> None:
        """Note with what inputs a stage is begun."""
        self._write(stage, inputs, finished=False, facts={})

    def finish(self, stage: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Note that a stage is finished, and facts about it worth keeping."""
        self._write(stage, inputs, finished=True, facts=facts)

    def begun(self, stage: str) -> bool:
        """Return whether there is any note about a stage."""
        return self._read(stage) is not None

    def facts(self, stage: str) -> dict[str, Any]:
        """Return the facts of a finished stage, or {}."""
        note = self._read(stage)
        return dict(note["facts"]) if note is not None and note.get("finished") else {}

    def inputs(self, stage: str) -> dict[str, Any]:
        """Return the inputs that a stage was begun with, or {}."""
        note = self._read(stage)
        return dict(note["inputs"]) if note is not None else {}

    def key(self, stage: str) -> str:
        """Return what identifies the inputs of a stage, or an empty string."""
        note = self._read(stage)
        return "" if note is None else str(note["key"])

    def _path(self, stage: str) -> Path:
        return self.out / FOLDER / f"{stage}.json"

    def _write(
        self, stage: str, inputs: Mapping[str, Any], *, finished: bool, facts: Mapping[str, Any]
    ) -> None:
        plain = dict(inputs)
        note = {"key": sha256_json(plain), "inputs": plain, "finished": finished, "facts": dict(facts)}
        write_json(self._path(stage), note)

    def _read(self, stage: str) -> dict[str, Any] | None:
        path = self._path(stage)
        if not path.exists():
            return None if self._above is None else self._above._read(stage)
        note = read_json(path)
        if not isinstance(note, dict) or not isinstance(note.get("facts"), dict) or "key" not in note:
            raise StoreError(f"{path} is not a note about a stage; remove it and run again")
        return note
