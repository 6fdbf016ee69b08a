"""Folders whose results belong at a URL.

A run works in a folder on this machine, since its codes are memory-mapped, its shards renamed and its lock
held there. With a URL for ``--out`` that folder lies in the user's cache, and what others need of it is
copied to the URL, the manifest last: whoever sees a manifest sees a whole run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finescope.errors import StoreError
from finescope.storage.files import atomic_path, read_json, write_bytes, write_json
from finescope.storage.remote import file_system, is_url, put, saying

_COPIED = ".copied.json"
"""What of a folder is at its URL already: size and time of change by name."""
_LAST = "manifest.json"
_SENT = ".copied-manifest.json"
"""The manifest at the URL when it was last copied: with another one there, somebody else's run is."""


def working_folder(out: str) -> Path:
    """Return the folder on this machine where what belongs at ``out`` is made: itself, unless it is a URL."""
    if not is_url(out):
        return Path(out)
    system, path = file_system(out)
    if system is None:
        return Path(path)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = posixpath.basename(path.rstrip("/")) or "run"
    return Path(
        cache, "finescope", "runs", f"{name}-{hashlib.sha256(out.rstrip('/').encode()).hexdigest()[:12]}"
    )


class Remote:
    """The copy, behind a URL, of a folder of this machine."""

    def __init__(self, url: str) -> None:
        """Name the place; nothing is read or written yet.

        Raises:
            InputError: see ``file_system``.
        """
        self.url = url.rstrip("/")
        self.folder = working_folder(url)
        self._system: Any = None
        path = url
        if is_url(url):
            self._system, path = file_system(url)
        self._path = path.rstrip("/")

    def __bool__(self) -> bool:
        """Whether the place is another than the folder itself."""
        return self._system is not None

    def try_writing(self) -> None:
        """Write a small file and remove it, so that a refusal comes before the work and not after it.

        Raises:
            StoreError: the store refuses it.
        """
        if self:
            probe = f"{self._path}/.finescope-{os.getpid()}-{secrets.token_hex(4)}"
            with saying("write to", self.url):
                self._system.makedirs(self._path, exist_ok=True)
                self._system.pipe_file(probe, b"finescope\n")
                self._system.rm_file(probe)

    def send(self, leave: tuple[str, ...] = ()) -> tuple[int, int]:
        """Copy what has changed since the last time, the manifest last; return how many files and bytes.

        Args:
            leave: folders that stay here.

        Raises:
            StoreError: the store refuses a file; run again to send the rest.
        """
        if not self:
            return 0, 0
        ledger = self.folder / _COPIED
        known = self._still_there(read_json(ledger) if ledger.is_file() else {})
        here = {name: file for name, file in self._files() if name.partition("/")[0] not in leave}
        stamps = {name: [file.stat().st_size, file.stat().st_mtime_ns] for name, file in here.items()}
        changed = [name for name, stamp in stamps.items() if known.get(name) != stamp]
        gone = sorted(known.keys() - here.keys())  # of an earlier selection in another format
        if changed or gone:
            self._remove(_LAST, known)  # until all is there
            changed = sorted({*changed, *({_LAST} & here.keys())}, key=lambda name: (name == _LAST, name))
        try:
            for name in gone:
                self._remove(name, known)
            for name in changed:
                self.put(name)
                known[name] = stamps[name]
                if name == _LAST:
                    write_bytes(self.folder / _SENT, here[name].read_bytes())
        finally:
            write_json(ledger, known)
        return len(changed), sum(stamps[name][0] for name in changed)

    def _still_there(self, known: dict[str, list[int]]) -> dict[str, list[int]]:
        """Return what of the files that were copied is at the URL yet: none if another run lies there."""
        with saying("read", self.url):
            self._system.invalidate_cache()
            there = self._system.find(self._path, detail=True) if self._system.exists(self._path) else {}
            sizes = {self._name(path): info.get("size") for path, info in there.items()}
            ours = self.folder / _SENT
            if known and _LAST in sizes:
                last = self._system.cat_file(f"{self._path}/{_LAST}")
                if not ours.is_file() or ours.read_bytes() != last:
                    return {}
        return {name: stamp for name, stamp in known.items() if sizes.get(name) == stamp[0]}

    def _remove(self, name: str, known: dict[str, list[int]]) -> None:
        with saying("remove", f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(f"{self._path}/{name}")
        known.pop(name, None)

    def _name(self, path: str) -> str:
        return path[path.index(self._path) + len(self._path) :].lstrip("/")

    def receive(self) -> None:
        """Bring a run that was finished elsewhere to this machine, unless it is here in that state.

        Raises:
            StoreError: there is no finished run at the URL, or it can't be read.
        """
        if not self:
            return
        with saying("read", f"{self.url}/{_LAST}"):
            manifest = self._system.cat_file(f"{self._path}/{_LAST}")
        ours = self.folder / _LAST
        if ours.is_file() and ours.read_bytes() == manifest:
            return
        known = {}
        for name in sorted(self.sizes(), key=lambda name: (name == _LAST, name)):
            file = self.get(name)
            known[name] = [file.stat().st_size, file.stat().st_mtime_ns]
        write_bytes(self.folder / _SENT, manifest)
        write_json(self.folder / _COPIED, known)

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the sizes of the files that are there, or below a folder of it, by name.

        Raises:
            StoreError: they can't be listed.
        """
        place = f"{self._path}/{below}".rstrip("/")
        with saying("read", self.url):
            self._system.invalidate_cache()
            found = self._system.find(place, detail=True) if self._system.exists(place) else {}
        return {self._name(path): int(info["size"]) for path, info in found.items()}

    def get(self, name: str) -> Path:
        """Bring one file to this machine, whole or not at all; return it.

        Raises:
            StoreError: it isn't there, or can't be read.
        """
        if ".." in name.split("/") or name.startswith("/"):
            raise StoreError(f"{self.url}/{name} would be written outside of {self.folder}; remove it")
        file = self.folder / name
        with saying("read", f"{self.url}/{name}"), atomic_path(file) as temporary:
            self._system.get_file(f"{self._path}/{name}", str(temporary))
        return file

    def read(self, name: str) -> bytes | None:
        """Return what is in a file that is there; None where it isn't.

        Raises:
            StoreError: it can't be read.
        """
        with saying("read", f"{self.url}/{name}"):
            try:
                return bytes(self._system.cat_file(f"{self._path}/{name}"))
            except FileNotFoundError:
                return None

    def put(self, name: str) -> None:
        """Copy one file there.

        Raises:
            StoreError: the store refuses it.
        """
        with saying("write", f"{self.url}/{name}"):
            put(self._system, self.folder / name, f"{self._path}/{name}")

    def agree(self, names: Iterable[str]) -> None:
        """Note that files of the folder are there as they are here, so that ``send`` leaves them out."""
        ledger = self.folder / _COPIED
        known = read_json(ledger) if ledger.is_file() else {}
        for name in names:
            file = (self.folder / name).stat()
            known[name] = [file.st_size, file.st_mtime_ns]
        write_json(ledger, known)

    def remove(self, name: str) -> None:
        """Remove one file there, if it is there.

        Raises:
            StoreError: the store refuses that.
        """
        self._remove(name, {})

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
                yield name, path
