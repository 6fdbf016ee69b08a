"""Texts as counts of words: sparse codes whose latents are words, scored like any others.

With 1 + log(count), and the inverse document frequency log((1 + N)/(1 + df)) + 1 as weights, their unit
vectors are those of scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``, whose default pattern finds the
words here too.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from finescope.codes import SparseCodes
from finescope.curation.blocks import FloatArray, IntArray, MappedCodes, with_values
from finescope.curation.scoring.base import NothingSharedError
from finescope.curation.scoring.weighting import logarithm
from finescope.embeddings.words import CountedTexts, WordCounts, index_type, words_of

__all__ = ["Words", "count_words", "words_of"]


class Words:
    """Counts of the words of N texts; codes over V words, as ``iter_shards`` gives them.

    Words seen in one text only can't link two; of more than 100 texts they are left out, which halves the
    vocabulary. Held in memory is the vocabulary; the counts stay where they are.

    Attributes:
        counted: the counts.
        vocabulary: the V words, ascending.
        document_frequency: int64 [V], texts that hold each word.
        lengths: int64 [N], characters of each text.
    """

    def __init__(self, counted: CountedTexts):
        """Make one vocabulary of those of the parts.

        Raises:
            InputError: the texts hold no words.
        """
        self.counted, self.lengths = counted, counted.lengths
        frequency: Counter[str] = Counter()
        for part in counted.parts:
            held = np.bincount(part.counts.indices.numpy(), minlength=part.counts.num_latents)
            frequency.update(dict(zip(part.vocabulary, held.tolist(), strict=True)))
        minimum = 2 if len(self) > 100 else 1
        self.vocabulary = sorted(word for word, texts in frequency.items() if texts >= minimum)
        if not self.vocabulary:
            raise NothingSharedError(f"TF-IDF found no words in the {len(self)} corpus texts")
        self.document_frequency = np.array([frequency[word] for word in self.vocabulary], np.int64)
        self.num_latents = len(self.vocabulary)
        known = {word: place for place, word in enumerate(self.vocabulary)}
        self._places = [_places(part, known) for part in counted.parts]
        self._ends = np.cumsum([0, *map(len, counted.parts)]).tolist()

    def __len__(self) -> int:
        return len(self.counted)

    def iter_shards(self) -> Iterator[SparseCodes]:
        """Yield the counts, shard by shard."""
        for part, place in zip(self.counted.parts, self._places, strict=True):
            yield self._renamed(part.counts, place)

    def take(self, rows: IntArray) -> SparseCodes:
        """Return the counts of some texts, in the order asked for (repeats allowed)."""
        order = np.argsort(rows, kind="stable")
        wanted, found = rows[order], list[SparseCodes]()
        cuts = np.searchsorted(wanted, self._ends).tolist()
        for number, (low, high) in enumerate(itertools.pairwise(cuts)):
            if high > low or not (found or rows.size):  # of no rows at least the dtypes
                counts = self.counted.parts[number].counts
                picked = counts[wanted[low:high] - self._ends[number]]
                found.append(self._renamed(picked, self._places[number]))
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return SparseCodes.cat(found)[place]

    @property
    def idf(self) -> FloatArray:
        """log((1 + N)/(1 + df)) + 1, float64 [V]."""
        return logarithm((1.0 + len(self)) / (1.0 + self.document_frequency)) + 1.0

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
        return np.concatenate([np.zeros(1), 1.0 + logarithm(np.arange(1.0, self._most))])

    def count(self, texts: Iterable[str] | CountedTexts) -> SparseCodes:
        """Return the counts of other texts' words, T rows over the same V words; other words are left out."""
        others = texts if isinstance(texts, CountedTexts) else CountedTexts.of(texts)
        known = {word: place for place, word in enumerate(self.vocabulary)}
        parts = [self._renamed(part.counts, _places(part, known)) for part in others.parts]
        return SparseCodes.cat(parts or [SparseCodes.from_dense(torch.zeros(0, self.num_latents))])

    def _renamed(self, counts: SparseCodes, place: NDArray[np.int32]) -> SparseCodes:
        """Return counts over this vocabulary; ``place`` has the number of each word in it, or -1.

        Both vocabularies are in order, so words that ascend inside a row still do.
        """
        words = place[counts.indices.numpy()]
        kept = words >= 0
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[counts.indptr.numpy()]
        return SparseCodes(
            torch.from_numpy(indptr),
            torch.from_numpy(words[kept].astype(index_type(self.num_latents))),
            counts.values[torch.from_numpy(kept)],
            self.num_latents,
            check=False,
        )


def _places(part: WordCounts, known: dict[str, int]) -> NDArray[np.int32]:
    return np.array([known.get(word, -1) for word in part.vocabulary], np.int32)


def count_words(texts: Iterable[str]) -> Words:
    """Count the words of N texts in one reading.

    Args:
        texts: N texts; a stream is fine.

    Raises:
        InputError: the texts hold no words.
    """
    return Words(CountedTexts.of(texts))
