"""Texts as counts of words, in the form in which they are kept beside the codes.

Counts are sparse codes whose latents are words: those of a shard stand over the words of that shard, so that
it can be written before the next one is read. Who needs one vocabulary for all makes it of the shards'.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finescope.codes import SparseCodes

_WORD = re.compile(r"\b\w\w+\b")
_EXACT = 2048
"""Up to here every whole number is a float16."""
_BREAK = "\n"
"""Stands between the words of a vocabulary: no word holds it."""
PART_ROWS = 8192
"""Texts counted together."""
TENSORS = ("words.indptr", "words.indices", "words.values", "words.spelled")
"""Names of ``WordCounts`` in a file."""


def words_of(text: str) -> Counter[str]:
    """Return how often each word of a text occurs: two letters or more, in lower case."""
    return Counter(_WORD.findall(text.lower()))


@dataclass(frozen=True)
class WordCounts:
    """Counts of the words of n texts.

    Attributes:
        counts: codes [n,V]: how often text i holds word v.
        spelled: uint8 [bytes], the V words in UTF-8, ascending, with a line break between two.
    """

    counts: SparseCodes
    spelled: Tensor

    @classmethod
    def of(cls, texts: Iterable[str]) -> WordCounts:
        """Count the words of some texts."""
        numbers: dict[str, int] = {}
        columns, counts, ends = array("q"), array("q"), array("q", [0])
        for text in texts:
            found = words_of(text)
            columns.extend(numbers.setdefault(word, len(numbers)) for word in found)
            counts.extend(found.values())
            ends.append(len(columns))
        vocabulary = sorted(numbers)
        place = np.empty(len(numbers), np.int64)
        place[[numbers[word] for word in vocabulary]] = np.arange(len(numbers))
        column, count = place[np.array(columns, np.int64)], np.array(counts, np.int64)
        # Words ascend inside a row, and so they do over any other vocabulary that is in order.
        order = np.argsort(np.repeat(np.arange(len(ends) - 1), np.diff(ends)) * len(numbers) + column)
        narrow = torch.float16 if count.max(initial=0) <= _EXACT else torch.float32
        return cls(
            SparseCodes(
                torch.from_numpy(np.array(ends, np.int64)),
                torch.from_numpy(column[order].astype(index_type(len(numbers)))),
                torch.from_numpy(count[order]).to(narrow),
                len(numbers),
                check=False,
            ),
            torch.frombuffer(bytearray(_BREAK.join(vocabulary).encode()), dtype=torch.uint8)
            if vocabulary
            else torch.zeros(0, dtype=torch.uint8),
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> WordCounts:
        """Return what ``tensors`` has taken apart.

        Raises:
            ValueError: the tensors don't go together.
        """
        indptr, indices, values, spelled = (tensors[name] for name in TENSORS)
        words = int((spelled.numpy() == ord(_BREAK)).sum()) + 1 if spelled.numel() else 0
        return cls(SparseCodes(indptr, indices, values, words), spelled)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a file, by name."""
        counts = self.counts
        return dict(zip(TENSORS, (counts.indptr, counts.indices, counts.values, self.spelled), strict=True))

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def vocabulary(self) -> list[str]:
        """The V words."""
        return self.spelled.numpy().tobytes().decode().split(_BREAK) if self.spelled.numel() else []


@dataclass(frozen=True)
class CountedTexts:
    """N texts as counts of their words.

    Attributes:
        parts: the counts of texts that stand one after the other, in order; of a store, read when asked for.
        lengths: int64 [N], characters of each text.
    """

    parts: Sequence[WordCounts]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> CountedTexts:
        """Count the words of N texts, in one reading; a stream is fine.

        Held in memory are the counts, some six bytes for each different word of a text.
        """
        lengths, parts = array("q"), list[WordCounts]()

        def measured() -> Iterator[str]:
            for text in texts:
                lengths.append(len(text))
                yield text

        rest = measured()
        while len(part := WordCounts.of(itertools.islice(rest, PART_ROWS))):
            parts.append(part)
        return cls(parts, np.array(lengths, np.int64))

    def __len__(self) -> int:
        return int(self.lengths.size)


def index_type(words: int) -> type[np.uint16] | type[np.int32]:
    """Return the dtype that numbers of words are kept in."""
    return np.uint16 if words <= 1 << 16 else np.int32
