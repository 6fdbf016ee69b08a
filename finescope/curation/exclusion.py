"""Which corpus rows are target rows: they would all be found, teach nothing, and flatter every metric."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from finescope.curation.blocks import BoolArray


def text_hash(text: str) -> str:
    """Return 32 hexadecimal digits (BLAKE2b, 128 bits) of a text after normalisation.

    Unicode is composed (NFKC), case folded, and every run of white space becomes one space, so copies that
    differ in wrapping, width or capitals count as the same text.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_target(
    ids: Sequence[str] | None = None,
    target_ids: Iterable[str] | None = None,
    texts: Iterable[str | None] | None = None,
    target_texts: Iterable[str | None] | None = None,
    *,
    hashes: Sequence[str | None] | None = None,
) -> BoolArray:
    """Mark the corpus rows that are targets, by id or by normalised text.

    Args:
        ids: ids of the N corpus rows.
        target_ids: ids of the targets.
        texts: texts of the N corpus rows; a stream is fine. Empty and missing texts never match.
        target_texts: texts of the targets.
        hashes: ``text_hash`` of the N corpus rows, instead of ``texts``.

    Returns:
        bool [N].

    Raises:
        ValueError: neither ids nor texts of the corpus were given, or their lengths differ.
    """
    marks: list[BoolArray] = []
    if ids is not None:
        wanted = set(target_ids or ())
        marks.append(np.fromiter((row in wanted for row in ids), dtype=np.bool_, count=len(ids)))
    if texts is not None and hashes is None:
        hashes = [text_hash(text) if text and text.strip() else None for text in texts]
    if hashes is not None:
        known = {text_hash(text) for text in target_texts or () if text and text.strip()}
        marks.append(np.fromiter((digest in known for digest in hashes), dtype=np.bool_, count=len(hashes)))
    if not marks:
        raise ValueError("is_target needs the ids, the texts or the hashes of the corpus rows")
    if len({mark.size for mark in marks}) > 1:
        raise ValueError(f"ids and texts differ in length: {[mark.size for mark in marks]}")
    return np.asarray(np.logical_or.reduce(marks), dtype=np.bool_)
