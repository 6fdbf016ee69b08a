"""A path on the local disk or in an ``fsspec`` file system, and what lies there."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import Any

from finescope.corpus.files import File
from finescope.errors import nearest_names
from finescope.storage.remote import file_system, is_url, protocols


@dataclass
class Place:
    """A path on the local disk or in an ``fsspec`` file system."""

    path: str
    system: Any = None

    @classmethod
    def at(cls, text: str) -> Place:
        if not is_url(text):
            return cls(os.path.expanduser(text))
        system, path = file_system(text)
        return cls(path, system)

    @property
    def over_http(self) -> bool:
        return self.system is not None and "http" in protocols(self.system)

    def file(self, path: str, constants: dict[str, Any], root: str | None = None) -> File:
        label = path[len(root) :].lstrip("/") if root is not None else ""
        return File(path, self.system, dict(constants), label)

    def is_folder(self, path: str) -> bool:
        if self.system is None:
            return os.path.isdir(path)
        with self.file(path, {}).reading():
            return bool(self.system.isdir(path))

    def exists(self, path: str) -> bool:
        if self.system is None:
            return os.path.exists(path)
        with self.file(path, {}).reading():
            return bool(self.system.exists(path))

    def matches(self) -> list[str]:
        if self.system is None:
            return sorted(glob.glob(self.path, recursive=True))
        with self.file(self.path, {}).reading():
            return sorted(self.system.glob(self.path))

    def children(self, folder: str) -> list[str]:
        """Return the paths in a folder, in order of name."""
        if self.system is None:
            return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        with self.file(folder, {}).reading():
            return sorted(name.rstrip("/") for name in self.system.ls(folder, detail=False))

    def absence(self) -> str:
        message = f"{self.path} does not exist"
        parent, name = os.path.split(self.path)
        if self.system is not None:
            return message
        if os.path.islink(self.path):
            return dead_link(self.path)
        if os.path.isdir(parent or "."):
            near = nearest_names(name, os.listdir(parent or "."))
            return f"{message}; did you mean {os.path.join(parent, near[0])}?" if near else message
        return f"{message}, nor does its folder"


def dead_link(path: str) -> str:
    """Return in words that a link leads to nothing, as git-annex leaves them for what it hasn't fetched."""
    return f"{path} is a link to {os.readlink(path)}, which isn't there; fetch the data, or remove the link"
