"""Delta Lake tables: which of the files in a folder are still part of one, as its log says.

Format: https://github.com/delta-io/delta/blob/master/PROTOCOL.md. Each commit is a file of JSON lines that
adds files and removes others, whose rows are older or deleted; the files stay where they are.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from finescope.corpus.files import File
from finescope.errors import InputError

LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")


def commits(files: Iterable[str]) -> list[str]:
    """Return those files of a log that are commits, in order."""
    return sorted(path for path in files if _COMMIT.fullmatch(posixpath.basename(path)))


def live(table: str, log: list[File]) -> set[str]:
    """Return the paths, relative to a table's folder, of the files that it consists of.

    Args:
        table: its folder, for messages.
        log: its commits, in order.

    Raises:
        InputError: the log doesn't begin with the table, can't be read, or says that not all rows of a file
            count, or that columns have other names in the files.
    """
    if [int(file.name[:20]) for file in log] != list(range(len(log))):
        raise _refused(table, "its log has only the later commits")
    paths: set[str] = set()
    for file in log:
        with file.open() as opened:
            lines = opened.read().splitlines()
        for line in filter(None, lines):
            try:
                _apply(json.loads(line), paths, table)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(f"{file.path} is no commit of a Delta Lake table: {error}") from error
    return paths


def _apply(action: dict[str, Any], paths: set[str], table: str) -> None:
    settings = (action.get("metaData") or {}).get("configuration") or {}
    if settings.get("delta.columnMapping.mode", "none") != "none":
        raise _refused(table, "its columns have other names in the files")
    if "remove" in action:
        paths.discard(unquote(action["remove"]["path"]))
    if "add" not in action:
        return
    added = action["add"]
    path = unquote(added["path"])
    if added.get("deletionVector"):
        raise _refused(table, f"{path} has rows that are deleted")
    if "://" in path or path.startswith("/"):
        raise _refused(table, f"{path} lies elsewhere")
    folders = {unquote(part.partition("=")[0]) for part in path.split("/")[:-1] if "=" in part}
    absent = [name for name in added.get("partitionValues") or {} if name not in folders]
    if absent:
        raise _refused(table, f"column {absent[0]!r} stands in the log alone")
    paths.add(path)


def _refused(table: str, why: str) -> InputError:
    return InputError(
        f"{table} is a Delta Lake table that can't be read file by file: {why}. Write its rows out, for "
        "example with deltalake, DeltaTable(…).to_pyarrow_table(), or name files of it with a pattern: "
        f"{table}/*.parquet"
    )
