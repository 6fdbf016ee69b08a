"""Which corpus rows are target rows: they would all be found, teach nothing, and flatter every metric."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finescope.curation.blocks import BoolArray, IntArray
from finescope.storage.identity import text_hash

_COUNTS = ("same_text", "same_id", "other_text")


@dataclass(frozen=True)
class TargetRows:
    """Which corpus rows are targets, and why.

    Attributes:
        marked: bool [N].
        same_text: rows that have the text of a target.
        same_id: rows that have the id of a target, where one of the two has no text to tell them apart.
        other_text: rows that are none, although a target has their id: the text is another.
    """

    marked: BoolArray
    same_text: int
    same_id: int
    other_text: int

    def counts(self) -> dict[str, int]:
        """Return the three counts by name."""
        return {name: getattr(self, name) for name in _COUNTS}


def find_targets(
    ids: Collection[str] | None = None,
    target_ids: Iterable[str] | None = None,
    texts: Iterable[str | None] | None = None,
    target_texts: Iterable[str | None] | None = None,
    *,
    hashes: Collection[str | None] | None = None,
    target_hashes: Sequence[str | None] | None = None,
) -> TargetRows:
    """Find the corpus rows that are targets: the normalised text decides, and the id where a text is missing.

    Ids are often those of a file and not of a text, ``0`` to ``n``: that two rows have one says nothing as
    long as their texts differ.

    Args:
        ids: ids of the N corpus rows.
        target_ids: ids of the Q targets.
        texts: texts of the N corpus rows; a stream is fine. Empty and missing texts never match.
        target_texts: texts of the targets, in the order of ``target_ids`` if there are as many.
        hashes: ``text_hash`` of the N corpus rows, instead of ``texts``.
        target_hashes: those of the targets, instead of ``target_texts``.

    Raises:
        ValueError: neither ids nor texts of the corpus were given, or their lengths differ.
    """
    if texts is not None and hashes is None:
        hashes = _hashes(texts)
    if ids is None and hashes is None:
        raise ValueError("targets are told by ids, texts or hashes of the corpus rows: give one of the three")
    if ids is not None and hashes is not None and len(ids) != len(hashes):
        raise ValueError(f"ids and texts differ in length: {[len(ids), len(hashes)]}")
    names = list(target_ids or ())
    said = _hashes(target_texts or ()) if target_hashes is None else list(target_hashes)
    known = {digest for digest in said if digest is not None}
    aligned = zip(names, said, strict=True) if len(names) == len(said) else ()
    mute = {name for name, digest in aligned if digest is None}  # known by their ids alone
    wanted = set(names)
    count = len(ids) if ids is not None else len(hashes or ())
    marked = np.zeros(count, np.bool_)
    same_text = same_id = other_text = 0
    nothing = itertools.repeat(None, count)
    pairs = zip(nothing if ids is None else ids, nothing if hashes is None else hashes, strict=True)
    for row, (name, digest) in enumerate(pairs):
        if digest is not None and digest in known:
            same_text += 1
        elif name in wanted and (digest is None or not known or name in mute):
            same_id += 1
        else:
            other_text += name in wanted
            continue
        marked[row] = True
    return TargetRows(marked, same_text, same_id, other_text)


def find_all_targets(
    blocks: Iterable[tuple[Any, Any]], sets: Sequence[tuple[Collection[str], Sequence[str | None]]]
) -> list[tuple[IntArray, dict[str, int]]]:
    """Find the rows that are targets of each of several sets; only rows that may be are looked at one by one.

    Args:
        blocks: the N corpus rows in their order: ids, a pyarrow column of strings, and ``text_hash`` of the
            texts, 16 bytes each, null for none.
        sets: of each set the ids that count and the ``text_hash`` of every text; as ``find_targets``.

    Returns:
        for each set the rows that are its targets, int64, ascending, and the counts of ``TargetRows``.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = pa.array({name for of_set, _ in sets for name in of_set}, pa.string())
    said = {bytes.fromhex(digest) for _, of_set in sets for digest in of_set if digest is not None}
    digests = pa.array(said, pa.binary(16))
    rows: list[list[IntArray]] = [[np.zeros(0, np.int64)] for _ in sets]
    counts: list[Counter[str]] = [Counter(dict.fromkeys(_COUNTS, 0)) for _ in sets]
    first = 0
    for ids, hashes in blocks:
        maybe = pc.or_(pc.is_in(ids, names), pc.is_in(hashes, digests))
        places = np.flatnonzero(maybe.to_numpy(zero_copy_only=False))
        own_ids = ids.take(places).to_pylist()
        own_hashes = [None if digest is None else digest.hex() for digest in hashes.take(places).to_pylist()]
        for at, (of_set, wanted) in enumerate(sets):
            among = find_targets(own_ids, of_set, hashes=own_hashes, target_hashes=wanted)
            rows[at].append(first + places[among.marked])
            counts[at].update(among.counts())
        first += len(ids)
    return [(np.concatenate(found), dict(of_set)) for found, of_set in zip(rows, counts, strict=True)]


def _hashes(texts: Iterable[str | None]) -> list[str | None]:
    return [text_hash(text) if text and text.strip() else None for text in texts]


def is_target(
    ids: Sequence[str] | None = None,
    target_ids: Iterable[str] | None = None,
    texts: Iterable[str | None] | None = None,
    target_texts: Iterable[str | None] | None = None,
    *,
    hashes: Sequence[str | None] | None = None,
) -> BoolArray:
    """Return bool [N], whether each corpus row is a target; see ``find_targets`` for arguments and rule.

    Raises:
        ValueError: as ``find_targets``.
    """
    return find_targets(ids, target_ids, texts, target_texts, hashes=hashes).marked
