"""From rows to an activation store: all of them, or a sample of documents, with resume."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from finescope.activations.store import ActivationStore, ActivationStoreWriter
from finescope.activations.tap import ActivationTap
from finescope.corpus.badrows import BadRow, check_bad
from finescope.corpus.plan import RowHash
from finescope.corpus.reader import Corpus
from finescope.corpus.row import Row
from finescope.errors import InputError, StoreError
from finescope.storage.files import PathLike

Progress = Callable[[int, int], None]
"""Called with (rows done, tokens done)."""


def store_activations(
    tap: ActivationTap,
    rows: Corpus | Iterable[Row],
    directory: PathLike,
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    shard_tokens: int | None = None,
    mode: str = "resume",
    progress: Progress | None = None,
) -> ActivationStore:
    """Write the activations of a corpus, or of a random sample of its documents, and open them.

    A run that was stopped goes on where it was a minute before; a run that was finished does nothing.

    Args:
        tap: model and layer.
        rows: a corpus, or rows that can be iterated more than once (a list) if ``max_tokens`` is given.
        directory: the store.
        max_tokens: keep whole documents up to so many tokens, chosen by a hash of seed and id, so that the
            choice doesn't favour the head of the corpus. This tokenises the corpus once more, beforehand.
        seed: of the choice.
        dtype: float16, bfloat16 or float32.
        shard_tokens: tokens per shard, about; by default 256 MiB worth.
        mode: "resume" or "overwrite".
        progress: called after each document.

    Raises:
        InputError: bad rows, NaN activations (the document is named), more of them than the tap may set
            aside, or no token at all.
        StoreError: the folder holds other work, a damaged shard, or the disk is full.
    """
    fingerprint = {
        "corpus": rows.fingerprint() if isinstance(rows, Corpus) else None,
        "tap": tap.fingerprint(),
        "max_tokens": max_tokens,
        "seed": seed if max_tokens is not None else None,
    }
    options = {"dtype": dtype, "shard_tokens": shard_tokens, "fingerprint": fingerprint, "mode": mode}
    with ActivationStoreWriter(directory, tap.width, **options) as writer:  # type: ignore[arg-type]
        if writer.complete:
            if not isinstance(rows, Corpus):
                _Chain(known=False).expect(rows, writer.facts)
        else:
            keep = None if max_tokens is None else _choose(tap, rows, max_tokens, seed)
            _fill(tap, rows, writer, keep, seed, progress)
    return ActivationStore(directory)


def _fill(
    tap: ActivationTap,
    rows: Iterable[Row],
    writer: ActivationStoreWriter,
    keep: int | None,
    seed: int,
    progress: Progress | None,
) -> None:
    chain = _Chain(known=isinstance(rows, Corpus))
    source = iter(rows.rows(records=False) if isinstance(rows, Corpus) else rows)
    done = 0
    if writer.reached:
        done = chain.skip(source, int(writer.reached["next_row"]), str(writer.reached["chain"]))
    positions: list[int] = []
    marks: dict[int, str] = {}

    def wanted() -> Iterator[Row]:
        nonlocal done
        for position, row in enumerate(source, start=done):
            done = position + 1
            marks[position] = chain.add(row)
            if not row.empty and (keep is None or rank_of(seed, row.id) <= keep):
                positions.append(position)
                yield row

    tokens = writer.num_tokens
    aside: list[BadRow] = []
    for document in tap.run(wanted()):
        position = positions[document.index]
        if document.bad:
            found = BadRow(position, document.place, document.id, document.bad)
            aside = check_bad([*aside, found], tap.max_bad_rows)
            continue
        tokens += document.activations.shape[0]
        writer.add(replace(document, index=position), next_row=position + 1, chain=marks[position])
        while marks and (oldest := next(iter(marks))) <= position:
            del marks[oldest]
        if progress is not None:
            progress(position + 1, tokens)
    if tokens == 0:
        raise InputError("no row of the corpus gives a token; there is nothing to store")
    writer.finish(next_row=done, chain=chain.value, source=tap.describe())


class _Chain:
    """A running hash over rows: tells at any row whether the rows before it are those of an earlier run.

    Nothing is hashed where the rows are known to be the same already, by the hashes of their files.
    """

    def __init__(self, *, known: bool) -> None:
        self._hash = None if known else RowHash()

    @property
    def value(self) -> str:
        return "" if self._hash is None else self._hash.value

    def add(self, row: Row) -> str:
        """Take the next row; return the hash of all so far."""
        if self._hash is not None:
            self._hash.add(row)
        return self.value

    def skip(self, rows: Iterator[Row], count: int, expected: str) -> int:
        """Read past ``count`` rows that an earlier run has done; return how many.

        Raises:
            StoreError: they aren't the rows that run saw.
        """
        for row in itertools.islice(rows, count):
            self.add(row)
        if self.value != expected:
            raise StoreError(
                f"the first {count} rows aren't those the finished shards were made from: the corpus has "
                "changed. Choose another folder, or overwrite this one"
            )
        return count

    def expect(self, rows: Iterable[Row], facts: Mapping[str, Any]) -> None:
        """Read all rows and refuse any but those that a finished store was made from.

        Raises:
            StoreError: the rows have changed.
        """
        count = 0
        for row in rows:
            self.add(row)
            count += 1
        if (count, self.value) != (facts.get("rows_read"), facts.get("chain")):
            raise StoreError(
                f"the {count} rows aren't the {facts.get('rows_read')} the finished store was made from. "
                "Choose another folder, or overwrite this one"
            )


def _choose(tap: ActivationTap, rows: Iterable[Row], max_tokens: int, seed: int) -> int:
    """Return the largest rank up to which documents hold at most ``max_tokens`` tokens together; -1 for none.

    Documents are kept in a heap until those of lower rank fill the budget: only the few that may still get in
    are tokenised, and memory grows with the budget and not with the corpus.
    """
    kept: list[tuple[int, int]] = []  # (-rank, tokens), the highest rank first
    total = 0
    source = iter(rows.rows(records=False) if isinstance(rows, Corpus) else rows)
    while chunk := list(itertools.islice(source, 1024)):
        ranked = [(rank_of(seed, row.id), row) for row in chunk]
        if total > max_tokens:
            ranked = [pair for pair in ranked if pair[0] < -kept[0][0]]
        counts = tap.windower.count([row for _, row in ranked])
        for (rank, _), count in zip(ranked, counts, strict=True):
            if count:
                heapq.heappush(kept, (-rank, count))
                total += count
        while kept and total - kept[0][1] > max_tokens:
            total -= heapq.heappop(kept)[1]
    ranks = sorted((-rank, count) for rank, count in kept)
    if not ranks:
        return -1
    ends = itertools.accumulate(count for _, count in ranks)
    fitting = sum(end <= max_tokens for end in ends)
    return ranks[max(fitting, 1) - 1][0]  # one document at least


def rank_of(seed: int, row_id: str) -> int:
    """Return where a row stands in the order that a seed puts rows in, by their ids."""
    text = f"{seed}\0{row_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
