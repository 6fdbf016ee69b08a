"""What is known of rows, and the spaces it opens: codes, words, activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    Codes,
    FloatArray,
    MappedCodes,
    iter_blocks,
    row_access,
    rows_of,
)
from finescope.curation.scoring.base import Column, NothingSharedError, Scorer, SpaceScorer
from finescope.curation.scoring.dense import Centred, DenseRows, whitened
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.presets import Preset
from finescope.curation.scoring.space import Space, Targets
from finescope.curation.scoring.sums import parse_scorer, total
from finescope.curation.scoring.words import Words, count_words
from finescope.embeddings.pooler import repool
from finescope.embeddings.words import CountedTexts
from finescope.errors import InputError


@dataclass(frozen=True)
class Evidence:
    """What is known of N rows. A scorer takes what it needs of it.

    Attributes:
        codes: their codes over F latents.
        pooling: how they were pooled; "" where that is what the recipe wants.
        texts: N texts, or the counts of their words; for scorers that need "texts".
        dense: [N,D] mean-pooled activations, or a store with ``iter_dense()``; for "dense".
        lengths: N numbers, tokens or characters; for "length". Those of the texts where there are none.
    """

    codes: Codes
    pooling: str = ""
    texts: Iterable[str] | CountedTexts | None = None
    dense: Any = None
    lengths: Any = None

    @property
    def holds(self) -> frozenset[str]:
        """What a scorer may need and is here: "texts", "dense", "lengths"."""
        given = {"texts": self.texts, "dense": self.dense, "lengths": self.lengths}
        if self.lengths is None:
            given["lengths"] = self.texts
        return frozenset(name for name, value in given.items() if value is not None)

    def check(self, prefix: str = "") -> int:
        """Return N.

        Args:
            prefix: of the names in a message.

        Raises:
            ValueError: texts, dense vectors or lengths of another number of rows than there are codes.
        """
        count = rows_of(self.codes)
        for name in ("texts", "dense", "lengths"):
            value = getattr(self, name)
            if hasattr(value, "__len__") and len(value) != count:
                raise ValueError(f"{prefix}{name} has {len(value)} entries, expected {count}")
        return count


class Spaces:
    """The spaces of a corpus; each is made once, when first asked for, and serves any number of target sets.

    Attributes:
        corpus: what is known of the N rows.
        rows: N.
    """

    def __init__(self, corpus: Evidence, state: Mapping[str, Tensor] | None = None):
        """Keep what is known of the corpus.

        Args:
            corpus: N rows.
            state: of spaces that were made of the same rows, from ``Scoring.state``.

        Raises:
            ValueError: texts, dense vectors or lengths of another number of rows than there are codes.
        """
        self.corpus, self.rows = corpus, corpus.check()
        self._learned = {name: value.numpy() for name, value in (state or {}).items()}
        self._made: dict[str, Space] = {}
        self._changes: dict[str, Centred] = {}

    @cached_property
    def held(self) -> NDArray[np.bool_]:
        """bool [N], rows whose code holds a latent."""
        rows = (np.diff(block.indptr.numpy()) > 0 for _, block in iter_blocks(self.corpus.codes))
        return np.concatenate([np.zeros(0, np.bool_), *rows])

    def known(self, targets: Evidence) -> frozenset[str]:
        """Return what scorers may need that is known of both sides; lengths are wanted of the corpus only."""
        return self.corpus.holds & (targets.holds | {"lengths"})

    def get(self, name: str, recipe: Preset) -> Space:
        """Return a space of the corpus.

        Args:
            name: "codes", "words", "dense", "dense-centred" or "dense-whitened".
            recipe: pooling and weights of the codes.

        Raises:
            InputError: texts without words.
            ValueError: the codes can't be turned into the recipe's pooling.
        """
        key = _key(name, recipe)
        if key not in self._made:
            learned = {
                name.removeprefix(f"{key}."): value
                for name, value in self._learned.items()
                if name.startswith(f"{key}.")
            }
            if name == "codes":
                rows = pooled(self.corpus.codes, self.corpus.pooling, recipe.pooling)
                self._made[key] = CorpusScorer(rows, weights=recipe.weights, learned=learned)
            elif name == "words":
                self._made[key] = word_space(self.words, learned)
            elif name == "dense":
                self._made[key] = Space(self._vectors, learned=learned, features="dimension")
            else:
                vectors: Codes = MappedCodes(self._vectors, self._changed(name))
                if not learned:
                    vectors = self._changed(name).of(self._vectors)
                self._made[key] = Space(vectors, learned=learned, features="dimension")
        return self._made[key]

    def targets(self, name: str, recipe: Preset, targets: Evidence) -> Targets:
        """Bring targets into a space.

        Args:
            name, recipe: as for ``get``.
            targets: what is known of T targets.

        Raises:
            InputError: as ``Space.targets``.
            ValueError: the codes can't be turned into the recipe's pooling; dense vectors of another width.
        """
        return self.get(name, recipe).targets(self.others(name, recipe, targets))

    def others(self, name: str, recipe: Preset, rows: Evidence) -> SparseCodes:
        """Return rows that needn't be of the corpus as a space has its own.

        Args:
            name, recipe: as for ``get``.
            rows: what is known of them: T targets, or rows that the corpus doesn't hold.

        Raises:
            ValueError: the codes can't be turned into the recipe's pooling; dense vectors of another width.
        """
        if name == "codes":
            return pooled_targets(rows, recipe)
        if name == "words":
            return self.words.damp(self.words.count(rows.texts or ()))
        vectors = every(DenseRows(rows.dense))
        if vectors.num_latents != self._vectors.num_latents:
            raise ValueError(
                f"need corpus [N,D] and targets [T,D], got {[self.rows, self._vectors.num_latents]} and "
                f"{list(vectors.shape)}"
            )
        return vectors if name == "dense" else self._changed(name)(vectors)

    def column(self, scorer: Column, others: Evidence | None = None) -> FloatArray:
        """Return the scores of all rows by a scorer that looks at no target, float64 [N].

        Args:
            scorer: what is asked for.
            others: rows to be scored in place of the corpus'.
        """
        rows = self.rows if others is None else rows_of(others.codes)
        if "lengths" not in scorer.needs:
            return scorer.values(rows, None)
        given = (self.corpus if others is None else others).lengths
        if given is None:
            given = self.words.lengths if others is None else _counted(others.texts).lengths
        return scorer.values(rows, np.array(given, dtype=np.float64))

    def state(self, name: str, recipe: Preset) -> dict[str, NDArray[Any]]:
        """Return what has been learned of the corpus in a space, by names that no other space has."""
        learned = self.get(name, recipe).state()
        if name in ("dense-centred", "dense-whitened"):
            learned |= self._changed(name).state()
        return {f"{_key(name, recipe)}.{what}": value for what, value in learned.items()}

    @cached_property
    def words(self) -> Words:
        """The corpus' words, counted.

        Raises:
            InputError: the texts hold no words, or are not as many as there are codes.
        """
        texts = self.corpus.texts
        found = Words(texts) if isinstance(texts, CountedTexts) else count_words(texts or ())
        if len(found) != self.rows:
            raise InputError(f"there are {len(found)} texts for {self.rows} codes; embed the corpus again")
        return found

    @cached_property
    def _vectors(self) -> DenseRows:
        return DenseRows(self.corpus.dense)

    def _changed(self, name: str) -> Centred:
        """What brings dense vectors into the space of that name."""
        if name not in self._changes:
            known = self._learned.get(f"{name}.centre")
            if known is not None:
                self._changes[name] = Centred(known, self._learned.get(f"{name}.root"))
            elif name == "dense-centred":
                self._changes[name] = Centred(self._vectors.mean())
            else:
                self._changes[name] = whitened(self._vectors)
        return self._changes[name]


def fitting(recipe: Preset, spaces: Spaces, targets: Evidence, *, seed: int = 42) -> tuple[Scorer, str]:
    """Return a recipe's scorer, and what was left out of it and why, in words.

    Left out of an optional recipe is what needs something that isn't known of the rows, and what looks at
    words where corpus and targets share none.

    Args:
        recipe: m and scorer; pooling and weights for the spaces.
        spaces: of the corpus.
        targets: what is known of them.
        seed: for ``random``.
    """
    scorer = parse_scorer(recipe.scorer, m=recipe.m, seed=seed)
    if not recipe.optional:
        return scorer, ""
    known, reasons = spaces.known(targets), {}
    for _, term in scorer.terms:
        missing = term.needs - known
        if missing:
            reasons[term.name] = (
                f"no {' and '.join(_KEPT[name] for name in sorted(missing))} beside the codes"
            )
        elif isinstance(term, SpaceScorer) and term.space == "words":
            try:
                spaces.targets(term.space, recipe, targets)
            except NothingSharedError:
                reasons[term.name] = "corpus and targets share no word"
    kept = [(weight, term) for weight, term in scorer.terms if term.name not in reasons]
    if not reasons or not kept:
        return scorer, ""
    words = "; ".join(f"without {name}: {reason}" for name, reason in reasons.items())
    return (kept[0][1] if len(kept) == 1 else total(kept)), f"{recipe.name} {words}"


_KEPT = {"texts": "words", "dense": "mean activations", "lengths": "lengths"}
"""What stands beside codes in a store, by what scorers call it."""


def _counted(texts: Iterable[str] | CountedTexts | None) -> CountedTexts:
    return texts if isinstance(texts, CountedTexts) else CountedTexts.of(texts or ())


def _key(name: str, recipe: Preset) -> str:
    """What tells a space from the others: codes make one for every pooling and weighting."""
    return f"{name} {recipe.pooling} {recipe.weights}" if name == "codes" else name


def word_space(words: Words, learned: Mapping[str, NDArray[Any]] | None = None) -> Space:
    """Return the space of words; μ, where it isn't given, is the mean of as many texts as the idf counts."""
    return Space(words.damped, weights=words.idf, learned=learned, features="word", every_row=True)


def pooled_targets(targets: Evidence, recipe: Preset) -> SparseCodes:
    """Return the codes of T targets, pooled as a recipe wants.

    Raises:
        ValueError: they can't be turned into that pooling.
    """
    return repool(every(targets.codes), targets.pooling or recipe.pooling, recipe.pooling)


def pooled(codes: Codes, stored: str, wanted: str) -> Codes:
    """Return codes as if pooled another way, changed as they are read; ``stored`` "" is as wanted.

    Raises:
        ValueError: see ``repool``.
    """
    if stored in ("", wanted):
        return codes
    repool(SparseCodes.from_dense(torch.zeros(0, 1)), stored, wanted)  # refuses now what it would refuse then
    return MappedCodes(codes, lambda block: repool(block, stored, wanted))


def every(codes: Codes) -> SparseCodes:
    """Return all rows at once: of targets, which are few."""
    return codes if isinstance(codes, SparseCodes) else row_access(codes).take(np.arange(rows_of(codes)))
