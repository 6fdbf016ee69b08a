"""Models in one GGUF file, through transformers' own loader, which turns packed weights into plain ones."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from finescope.errors import InputError

READERS = ("gguf", "accelerate")
"""What transformers needs to read such a file."""
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf", re.IGNORECASE)
_TEXT, _ARRAY = 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Of each kind of value that has a size of its own."""
_PLAIN = ("default", "gpt-2", "gpt2")
"""What files call the way of cutting words that is taken for want of another."""


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its ending."""
    return path.suffix.lower() == ".gguf" and path.is_file()


def check_gguf(path: Path) -> None:
    """Refuse a file that can't be read, before anything is loaded.

    Raises:
        InputError: a library is missing, or it is one part of several, or no GGUF file at all.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is no GGUF file: it doesn't begin with those letters; load it again")
    part = _PART.search(path.name)
    if part and int(part[1]) > 1:
        raise InputError(
            f"{path} is one of {int(part[1])} parts of a model; put them together "
            "(llama-gguf-split --merge) and name the whole file"
        )
    missing = [name for name in READERS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{path} is a GGUF file, and reading one needs {' and '.join(missing)}: "
            "pip install 'finescope[gguf]'"
        )


@contextlib.contextmanager
def without_bar() -> Iterator[None]:
    """Keep the bar of the loader off the screen: of all its bars, this one can't be switched off."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def gguf_remark(source: Any) -> str | None:
    """Return what transformers doesn't know of a GGUF file's tokenizer; None if that is nothing.

    A file only names the way in which its tokenizer cuts a text into words before it merges letters.
    transformers has the ways of some names and takes GPT-2's for all others, without a word.
    """
    path = Path(source).expanduser() if isinstance(source, str) or hasattr(source, "__fspath__") else None
    if path is None or not is_gguf(path):
        return None
    name = text_in(path, "tokenizer.ggml.pre")
    if not name or name in _PLAIN or name in _known():
        return None
    return (
        f"{path.name} cuts words in a way called {name!r}, which transformers doesn't know: it cuts them as "
        "GPT-2 does, which gives other tokens if the two differ"
    )


def text_in(path: Path, wanted: str) -> str | None:
    """Return a text among a GGUF file's metadata, by its key; None if there is none.

    The libraries read whole vocabularies for that. Format: https://github.com/ggml-org/ggml, docs/gguf.md.
    """
    with path.open("rb") as file:
        _, version, _, entries = struct.unpack("<4sIQQ", file.read(24))
        if version not in (2, 3):
            return None
        for _ in range(entries):
            key = _text(file)
            kind = _whole(file, 4)
            if key == wanted and kind == _TEXT:
                return _text(file)
            _skip(file, kind)
    return None


def _skip(file: BinaryIO, kind: int) -> None:
    count = 1
    if kind == _ARRAY:
        kind, count = _whole(file, 4), _whole(file, 8)
    if kind in (_TEXT, _ARRAY):
        for _ in range(count):
            _skip(file, kind) if kind == _ARRAY else file.seek(_whole(file, 8), 1)
    else:
        file.seek(count * _BYTES[kind], 1)


def _whole(file: BinaryIO, size: int) -> int:
    return int.from_bytes(file.read(size), "little")


def _text(file: BinaryIO) -> str:
    return file.read(_whole(file, 8)).decode("utf-8", "replace")


def _known() -> frozenset[str]:
    """Return the ways of cutting words that transformers has; none where its version looks at none."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return frozenset()
    return frozenset(GGUF_PRE_TOKENIZER_SPLITS)
