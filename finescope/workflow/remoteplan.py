"""A plan and the shards made of it at a URL, where the tasks of an array share no folder.

Each task works in a folder of its own machine. What comes before the codes is copied to the URL, then
``planned.json`` with the hashes of all of that: whoever sees it sees a whole plan. A finished shard is copied
there, its note last. Done twice it leaves the same bytes, so it doesn't matter who is last.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.errors import InputError, StoreError
from finescope.storage.checked import verify_shard
from finescope.storage.files import write_bytes, write_json
from finescope.storage.identity import sha256_file
from finescope.storage.manifest import MANIFEST as STORE_MANIFEST
from finescope.storage.manifest import ShardEntry, begun_with
from finescope.workflow.layout import CONFIG, CORPUS_CODES, MANIFEST, MARKS, PLAN, SAE
from finescope.workflow.ledger import FOLDER as STAGES
from finescope.workflow.precision import WIDE

if TYPE_CHECKING:
    from finescope.storage.remote_folder import Remote
    from finescope.storage.shardfiles import ShardFiles

PLANNED = "planned.json"
"""Hashes of the files of a plan, by name, and of all that decides the codes."""
_STORE = f"{CORPUS_CODES}/{STORE_MANIFEST}"
_NOTE = re.compile(rf"{CORPUS_CODES}/shard-(\d{{5,}})\.json")


def send_plan(remote: Remote, stages: Sequence[str], codes: str) -> None:
    """Copy a plan to its URL, if it has one and doesn't lie there yet.

    Args:
        remote: the folder of the run, and its URL.
        stages: those that were done for the plan.
        codes: a hash of what decides the codes; shards of others that lie there are removed.

    Raises:
        StoreError: the store refuses a file.
    """
    if not remote:
        return
    names = [CONFIG, PLAN, MARKS, *(f"{STAGES}/{stage}.json" for stage in stages)]
    files = [remote.folder / name for name in names]
    files += sorted(file for file in (remote.folder / SAE).rglob("*") if not file.name.startswith("."))
    hashes = {
        file.relative_to(remote.folder).as_posix(): sha256_file(file) for file in files if file.is_file()
    }
    write_json(remote.folder / PLANNED, {"files": hashes, "codes": codes})
    before = remote.read(PLANNED)
    if before == (remote.folder / PLANNED).read_bytes():
        return
    for name in (MANIFEST, PLANNED):  # of another plan
        remote.remove(name)
    if before is None or _read(before)["codes"] != codes:
        for name in remote.sizes(CORPUS_CODES):
            remote.remove(name)
    for name in (*hashes, PLANNED):
        remote.put(name)


def fetch_plan(remote: Remote) -> None:
    """Bring the plan at a URL to this machine, unless it is here; what was done by it stays.

    Raises:
        InputError: there is no plan.
        StoreError: it can't be read, or is being replaced.
    """
    if not remote:
        return
    planned = remote.read(PLANNED) or b""
    if not _read(planned)["files"]:
        raise InputError(f"{remote.url} holds no {PLANNED}; `finescope plan` with the same job writes it")
    found, ours = _read(planned), remote.folder / PLANNED
    before = ours.read_bytes() if ours.is_file() else b""
    same = before == planned
    if not same and _read(before)["codes"] != found["codes"]:
        shutil.rmtree(remote.folder / CORPUS_CODES, ignore_errors=True)
    for name, digest in found["files"].items():
        file = remote.folder / name
        if file.is_file() and (same or sha256_file(file) == digest):
            continue
        if sha256_file(remote.get(name)) != digest:
            raise StoreError(f"{remote.url}/{name} isn't that of {PLANNED}; run `finescope plan` again")
    write_bytes(ours, planned)


def _read(planned: bytes) -> dict[str, Any]:
    """Return what a ``planned.json`` says; nothing if it can't be read."""
    try:
        found = json.loads(planned)
        return {"files": dict(found["files"]), "codes": found["codes"]}
    except (ValueError, KeyError, TypeError):
        return {"files": {}, "codes": ""}


class RemoteShards:
    """The finished shards of a run at its URL."""

    def __init__(self, remote: Remote) -> None:
        """Name the place; where the run has no URL there are none, and none are sent."""
        self._remote = remote

    def begin(self) -> None:
        """Take over what the store says of itself: bfloat16 where another task's activations needed that."""
        if self._remote and self._remote.read(_STORE) is not None and not self._wide():
            self._remote.get(_STORE)

    def _wide(self) -> bool:
        begun = begun_with(self._remote.folder / CORPUS_CODES) or {}
        return bool(begun.get("tap", {}).get("activation_dtype") == WIDE)

    def finished(self, files: ShardFiles, numbers: Container[int]) -> dict[int, ShardEntry]:
        """Return, by number, those of some shards of this work that are there, by the size of their files."""
        found = {number: files.entry_of(held) for number, _, held in self._noted(numbers)}
        return {number: entry for number, entry in found.items() if entry is not None}

    def _noted(self, numbers: Container[int] | None = None) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield numbers, names of notes there, and what they say, of shards that are as large as they say."""
        sizes = self._remote.sizes(CORPUS_CODES) if self._remote else {}
        for note in sorted(sizes):
            name = _NOTE.fullmatch(note)
            if name is None or (numbers is not None and int(name[1]) not in numbers):
                continue
            with contextlib.suppress(ValueError, KeyError, TypeError):  # it says nothing
                held = json.loads(self._remote.read(note) or b"")
                said = {held["table"]: held["table_bytes"], held["file"]: held["bytes"]}
                if all(sizes.get(f"{CORPUS_CODES}/{name}") == size for name, size in said.items()):
                    yield int(name[1]), note, held

    def send(self, entry: ShardEntry) -> None:
        """Copy a finished shard there, its note last."""
        if not self._remote:
            return
        if self._wide() or self._remote.read(_STORE) is None:
            self._remote.put(_STORE)
        for name in (entry.table, entry.file, f"{Path(entry.file).stem}.json"):
            self._remote.put(f"{CORPUS_CODES}/{name}")

    def fetch(self) -> None:
        """Bring the shards that aren't here; one that is damaged counts as not done from then on."""
        self.begin()
        alike = []
        for _, note, held in self._noted():
            names = [f"{CORPUS_CODES}/{held[kind]}" for kind in ("table", "file")]
            entry = ShardEntry.from_dict({name: held[name] for name in held if name != "identity"})
            if not self._whole(entry):
                for name in names:
                    self._remote.get(name)
            if self._whole(entry):
                self._remote.get(note)
                alike += [*names, note]
            else:
                self._remote.remove(note)
        self._remote.agree(alike)

    def _whole(self, entry: ShardEntry) -> bool:
        """Whether a shard is here as it was written."""
        try:
            verify_shard(self._remote.folder / CORPUS_CODES, entry)
        except StoreError:
            return False
        return True
