"""Texts as counts of words: sparse codes whose latents are words, scored like any others.

With 1 + log(count), and the inverse document frequency log((1 + N)/(1 + df)) + 1 as weights, their unit
vectors are those of scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``, whose default pattern finds the
words here too.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.curation.blocks import BLOCK_ROWS, FloatArray, IntArray, MappedCodes, with_values
from finescope.errors import InputError

_WORD = re.compile(r"\b\w\w+\b")
MAX_COMPARED = 300_000
"""Of corpora with more rows no words are counted for the sake of a comparison."""
_EXACT = 2048
"""Up to here every whole number is a float16."""


class Words:
    """Counts of the words of N texts; codes over V words, as ``iter_shards`` gives them.

    Attributes:
        vocabulary: the V words, ascending.
        document_frequency: int64 [V], texts that hold each word.
        lengths: int64 [N], characters of each text.
    """

    def __init__(
        self,
        shards: list[SparseCodes],
        vocabulary: list[str],
        document_frequency: IntArray,
        lengths: IntArray,
    ):
        """Take counted words; ``count_words`` counts them."""
        self._shards = shards
        self.vocabulary, self.document_frequency, self.lengths = vocabulary, document_frequency, lengths
        self.num_latents = len(vocabulary)

    def __len__(self) -> int:
        return int(self.lengths.size)

    def iter_shards(self) -> Iterator[SparseCodes]:
        """Yield the counts, shard by shard."""
        return iter(self._shards)

    @property
    def idf(self) -> FloatArray:
        """log((1 + N)/(1 + df)) + 1, float64 [V]."""
        return np.asarray(np.log((1.0 + len(self)) / (1.0 + self.document_frequency)) + 1.0)

    @property
    def damped(self) -> MappedCodes:
        """1 + log(count) in place of the counts."""
        return MappedCodes(self, self.damp)

    def damp(self, block: SparseCodes) -> SparseCodes:
        """Return 1 + log(count) of counts."""
        counts = block.values.numpy().astype(np.int64)
        while counts.size and counts.max() >= self._logarithms.size:
            del self._logarithms
            self._most *= 2
        return with_values(block, torch.from_numpy(self._logarithms[counts]))

    _most = 256

    @cached_property
    def _logarithms(self) -> FloatArray:
        # From a table, so that the number does not depend on where in a vector register it is computed.
        return np.array([0.0, *(1.0 + math.log(count) for count in range(1, self._most))])

    def count(self, texts: Iterable[str]) -> SparseCodes:
        """Return the counts of other texts' words, T rows over the same V words; other words are left out."""
        known = {word: place for place, word in enumerate(self.vocabulary)}
        counted = _Counted()
        for text in texts:
            counted.add({known[word]: n for word, n in words_of(text).items() if word in known})
        return counted.shard(np.arange(self.num_latents), self.num_latents)


def words_of(text: str) -> Counter[str]:
    """Return how often each word of a text occurs: two letters or more, in lower case."""
    return Counter(_WORD.findall(text.lower()))


class _Counted:
    """Counts of some texts, as they come."""

    def __init__(self) -> None:
        self.words, self._counts, self._ends = array("q"), array("q"), array("q", [0])

    def add(self, counts: dict[int, int]) -> None:
        """Take the counts of a text, by the number of the word."""
        self.words.extend(counts)
        self._counts.extend(counts.values())
        self._ends.append(len(self.words))

    def shard(self, place: IntArray, width: int) -> SparseCodes:
        """Return the texts as rows over ``width`` words; a word's number is turned into its ``place``."""
        columns, counts = place[np.array(self.words, np.int64)], np.array(self._counts, np.int64)
        rows = np.repeat(np.arange(len(self._ends) - 1), np.diff(self._ends))
        kept = np.flatnonzero(columns >= 0)
        order = kept[np.argsort(rows[kept] * width + columns[kept])]
        indptr = np.zeros(len(self._ends), np.int64)
        np.cumsum(np.bincount(rows[kept], minlength=indptr.size - 1), out=indptr[1:])
        narrow = torch.float16 if counts.max(initial=0) <= _EXACT else torch.float32
        return SparseCodes(
            torch.from_numpy(indptr),
            torch.from_numpy(columns[order].astype(np.uint16 if width <= 1 << 16 else np.int32)),
            torch.from_numpy(counts[order]).to(narrow),
            width,
        )


def count_words(texts: Iterable[str]) -> Words:
    """Count the words of N texts in one reading.

    Words seen in one text only can't link two; of more than 100 texts they are left out, which halves the
    vocabulary. Held in memory are the counts, some six bytes for each different word of a text.

    Args:
        texts: N texts; a stream is fine.

    Raises:
        InputError: the texts hold no words.
    """
    numbers: dict[str, int] = {}
    parts: list[_Counted] = []
    lengths = array("q")
    for text in texts:
        if len(lengths) % BLOCK_ROWS == 0:
            parts.append(_Counted())
        parts[-1].add({numbers.setdefault(word, len(numbers)): n for word, n in words_of(text).items()})
        lengths.append(len(text))
    frequency = np.zeros(len(numbers), np.int64)
    for part in parts:
        frequency += np.bincount(part.words, minlength=frequency.size)
    minimum = 2 if len(lengths) > 100 else 1
    names = np.array(list(numbers), dtype=object)
    kept = np.flatnonzero(frequency >= minimum)
    if kept.size == 0:
        raise InputError(f"TF-IDF found no words in the {len(lengths)} corpus texts")
    kept = kept[np.argsort(names[kept])]
    place = np.full(frequency.size, -1, np.int64)
    place[kept] = np.arange(kept.size)
    shards = [part.shard(place, kept.size) for part in parts]
    return Words(shards, names[kept].tolist(), frequency[kept], np.array(lengths, np.int64))
