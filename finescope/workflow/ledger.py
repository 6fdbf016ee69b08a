"""Which stages of a run are finished, and with what inputs: killed runs go on, changed inputs are noticed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finescope.errors import InputError, StoreError
from finescope.storage.files import read_json, sha256_json, write_json

FOLDER = "stages"


class Ledger:
    """Notes about the finished stages of one output folder, one small JSON file per stage."""

    def __init__(self, out: Path, *, restart: bool = False):
        """Open the ledger of an output folder.

        Args:
            out: the output folder.
            restart: redo expensive stages whose inputs have changed, instead of refusing.
        """
        self.out = out
        self.restart = restart

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any] | None],
        *,
        outputs: Sequence[str],
        expensive: bool = False,
        discard: Callable[[], None] | None = None,
    ) -> tuple[dict[str, Any], bool]:
        """Do a stage unless it was finished before with the same inputs.

        Args:
            stage: its name.
            inputs: plain values on which the result depends.
            work: does the stage and returns facts worth keeping. It is expected to resume what a killed run
            began. outputs: paths below the output folder that must exist for the stage to count as finished.
            expensive: refuse to redo the stage with other inputs (unless ``restart``). discard: removes the
            results of other inputs before the stage is redone.

        Returns:
            the facts, and whether the stage was done now.

        Raises:
            InputError: the folder holds an expensive stage's results of other inputs.
        """
        note = self._read(stage)
        key = sha256_json(dict(inputs))
        if note is not None and note.get("key") == key:
            if note.get("finished") and all((self.out / name).exists() for name in outputs):
                return dict(note["facts"]), False
        elif note is not None:
            changed = _differences(note.get("inputs", {}), inputs)
            if expensive and not self.restart:
                raise InputError(
                    f"{self.out} holds the {stage} of another run ({changed}); choose another --out, or add "
                    "--restart to throw that away and begin again"
                )
            if discard is not None:
                discard()
        begun = {"key": key, "inputs": dict(inputs), "finished": False, "facts": {}}
        write_json(self._path(stage), begun)
        start = time.monotonic()
        facts = dict(work() or {})
        facts["seconds"] = round(time.monotonic() - start, 2)
        write_json(self._path(stage), {**begun, "finished": True, "facts": facts})
        return facts, True

    def facts(self, stage: str) -> dict[str, Any]:
        """Return the facts of a finished stage, or {}."""
        note = self._read(stage)
        return dict(note["facts"]) if note is not None and note.get("finished") else {}

    def key(self, stage: str) -> str:
        """Return what identifies the inputs of a stage, or an empty string."""
        note = self._read(stage)
        return str(note.get("key", "")) if note is not None else ""

    def _path(self, stage: str) -> Path:
        return self.out / FOLDER / f"{stage}.json"

    def _read(self, stage: str) -> dict[str, Any] | None:
        path = self._path(stage)
        if not path.exists():
            return None
        note = read_json(path)
        if not isinstance(note, dict) or "key" not in note:
            raise StoreError(f"{path} is not a note about a stage; remove it and run again")
        return note


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    shown = []
    for name in names[:3]:
        old, new = before.get(name), now.get(name)
        plain = all(isinstance(value, (str, int, float, type(None))) for value in (old, new))
        shown.append(f"{name} was {old!r}, now {new!r}" if plain else f"{name} changed")
    return "; ".join(shown) or "its notes differ"
