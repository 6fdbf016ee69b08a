"""A recipe fitted to a corpus and its targets: it scores all rows, and takes the score of any row apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.curation.blocks import FloatArray, IntArray, PickedRows, iter_blocks, weighted_norms
from finescope.curation.scoring.base import FOLDS, Column, Pick, Scorer, Seen, SpaceScorer
from finescope.curation.scoring.evidence import Evidence, Spaces, fitting, pooled_targets
from finescope.curation.scoring.onepass import CorpusScorer, Nearest, one_pass, rows_at_a_time
from finescope.curation.scoring.presets import Preset, get_preset
from finescope.curation.scoring.scorers import Random
from finescope.curation.scoring.space import Space, Targets, View, side_by_side
from finescope.curation.scoring.sums import Numbers, Sum, added, moments_of, parse_scorer
from finescope.curation.scoring.table import NOBODY, ScoreTable
from finescope.errors import InputError
from finescope.storage.spill import Spill


@dataclass(frozen=True)
class Contributions:
    """The scores of S rows, taken apart.

    Attributes:
        parts: by space (a name of ``SPACES``) one addend per row and latent, word or
            dimension: scipy CSR float64 [S, features of the space].
        constant: float64 [S], what no feature accounts for: the means that standardising took off, and scores
            that look at no space.
    """

    parts: Mapping[str, Any]
    constant: FloatArray

    @property
    def latents(self) -> Any:
        """The addends of the latents, scipy CSR float64 [S,F]; none where the scorer looks at no codes."""
        return self.parts["codes"]

    def total(self) -> FloatArray:
        """Return the sum over everything, float64 [S]: the scores."""
        sums = [np.asarray(part.sum(axis=1)).ravel() for part in self.parts.values()]
        return np.asarray(sum(sums, self.constant))


class Scoring:
    """A recipe with what it has learned of a corpus and of targets.

    Attributes:
        recipe: pooling, weights and scorer.
        scorer: the recipe's scorer; of an optional one, what is left of it.
        remark: what was left out of it and why, in words; "" if nothing was.
        spaces: of the corpus.
    """

    def __init__(
        self,
        corpus: Evidence | Spaces,
        targets: Evidence,
        recipe: Preset | str = "default",
        *,
        scorer: str | Scorer | None = None,
        seed: int = 42,
        state: Mapping[str, Tensor] | None = None,
    ):
        """Look at what is there; passes over the corpus are made when they are needed.

        Args:
            corpus: N rows; or their spaces, which serve several recipes and target sets.
            targets: T rows.
            recipe: pooling, weights, scorer and m: a preset, by name or as a value.
            scorer: to be used in place of the recipe's, as it is written or as a value.
            seed: for ``random``.
            state: what ``state`` returned for the same recipe and rows, to be taken over.

        Raises:
            ValueError: an unknown preset or scorer, or one that needs what is not known of the rows.
        """
        self.recipe = get_preset(recipe) if isinstance(recipe, str) else recipe
        self.spaces = corpus if isinstance(corpus, Spaces) else Spaces(corpus, state)
        targets.check("target_")
        self.remark = ""
        if not scorer:
            self.scorer, self.remark = fitting(self.recipe, self.spaces, targets, seed=seed)
        else:
            self.scorer = parse_scorer(scorer, m=self.recipe.m, seed=seed)
        missing = self.scorer.needs - self.spaces.known(targets)
        if missing:
            raise ValueError(
                f"scorer {self.scorer.name!r} needs the {' and '.join(sorted(missing))} of the rows, not "
                "kept beside these codes; embed them again, or choose a scorer that looks at codes alone"
            )
        looked_at = {scorer.space for _, scorer in self.scorer.terms if isinstance(scorer, SpaceScorer)}
        self._names = ["codes", *sorted(looked_at - {"codes"})]
        self._evidence = targets
        self._targets: dict[str, Targets] = {}
        self._state = {} if state is None else state
        self._moments: Tensor | None = self._state.get("moments")

    @property
    def space(self) -> CorpusScorer:
        """The corpus in the space of its codes, with the recipe's pooling and weights."""
        space = self.spaces.get("codes", self.recipe)
        assert isinstance(space, CorpusScorer)
        return space

    @property
    def targets(self) -> SparseCodes:
        """The codes of the T targets, pooled as the recipe wants."""
        return pooled_targets(self._evidence, self.recipe)

    def _seen_in(self, name: str) -> Targets:
        if name not in self._targets:
            found = self._targets[name] = self.spaces.targets(name, self.recipe, self._evidence)
            for key, term in self._fits(name):
                if key in self._state:
                    found.everything.fits[term] = self._fit(key)
        return self._targets[name]

    def _fit(self, key: str) -> FloatArray:
        """What a scorer was fitted to, float64 [FOLDS,F], as it was kept."""
        kept = self._state[key].numpy()
        if kept.ndim != 2 or len(kept) != FOLDS:
            raise InputError(
                f"what {key.removeprefix('fit.')} has learned was kept by another version of FineScope; "
                "score the corpus again: `finescope curate`, or `finescope select RUN`"
            )
        return np.asarray(kept)

    def _fits(self, space: str) -> list[tuple[str, SpaceScorer]]:
        """The terms that look at a space, with a name in the state for what they are fitted to it."""
        return [
            (f"fit.{term.name}", term)
            for _, term in self.scorer.terms
            if isinstance(term, SpaceScorer) and term.space == space
        ]

    def score(self) -> ScoreTable:
        """Score every corpus row, in one pass after those that find weights and means.

        The nearest target and its similarity are those of the codes, whatever the scorer looks at. Rows
        without a code are not valid and score 0.

        Raises:
            InputError: no target, no target with a code of positive weight, or a non-finite target.
            ValueError: the stored pooling can't be turned into the recipe's.
        """
        return score_together([self])[0]

    def score_others(self, rows: Evidence) -> ScoreTable:
        """Score rows that the corpus doesn't hold as its own are: by the same weights, means and moments.

        A row of the corpus scores here what ``score`` gives it.

        Args:
            rows: n rows, of the same SAE; what the scorer needs of the corpus is needed of them.

        Raises:
            InputError: no target with a code of positive weight.
            ValueError: a scorer that orders the rows of one corpus and says nothing of others; what it needs
                isn't known of the rows; or codes that can't be turned into the recipe's pooling.
        """
        self.check_others()
        count = rows.check()
        terms = [scorer for _, scorer in self.scorer.terms]
        missing = self.scorer.needs - rows.holds
        if missing:
            raise ValueError(
                f"scorer {self.scorer.name!r} needs the {' and '.join(sorted(missing))} of the rows that are "
                "to be scored"
            )
        views = self.views()
        step = rows_at_a_time(list(views.values()))
        nearest = Nearest(count, views["codes"].targets)
        valid = np.zeros(count, np.bool_)
        columns = [
            self.spaces.column(term, rows) if isinstance(term, Column) else np.empty(count) for term in terms
        ]
        for name, view in views.items():
            for low, block in iter_blocks(self.spaces.others(name, self.recipe, rows), step):
                part = slice(low, low + len(block))
                seen = view.see(block, weighted_norms(block, view.space.weights))
                if name == "codes":
                    nearest.add(part, seen.cosines)
                    valid[part] = seen.valid
                for term, column in zip(terms, columns, strict=True):
                    if isinstance(term, SpaceScorer) and term.space == name:
                        column[part] = term.score(seen, view.targets.everything)
        score = added(columns, self.scales()) if isinstance(self.scorer, Sum) else columns[0]
        score[~valid] = 0.0
        return ScoreTable(score, *nearest.of(slice(0, count), valid), valid, self.scorer.name)

    def nearest(self, rows: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the nearest target of some rows and its cosine, as the columns of ``score`` have them.

        Args:
            rows: int64 [R] row numbers.

        Returns:
            int64 [R] and float64 [R].
        """
        return nearest_of_each({"": self}, {"": rows})[""]

    def check_others(self) -> None:
        """Refuse to score rows that the corpus doesn't hold where the scorer has nothing to say of them.

        Raises:
            ValueError: it draws lots.
        """
        if any(isinstance(term, Random) for _, term in self.scorer.terms):
            raise ValueError(
                f"scorer {self.scorer.name!r} draws an order of the corpus' own rows; there is none of others"
            )

    def views(self) -> dict[str, View]:
        """Return the spaces that the scorer looks at, each with the targets."""
        terms = [scorer for _, scorer in self.scorer.terms]
        return {
            name: View(self.spaces.get(name, self.recipe), self._seen_in(name), uses_mean(name, terms))
            for name in self._names
        }

    def learn_moments(self, columns: Sequence[Numbers]) -> None:
        """Find mean and standard deviation of the terms' scores of all rows, where they are to be summed."""
        if isinstance(self.scorer, Sum):
            self._moments = torch.tensor([moments_of(column) for column in columns], dtype=torch.float64)

    def contributions(self, rows: IntArray) -> Contributions:
        """Take the scores of some rows apart; each term of a sum is asked for its own.

        Args:
            rows: int64 [S] row numbers.
        """
        from scipy.sparse import csr_matrix

        rows = np.asarray(rows, dtype=np.int64)
        valid = self.space.valid_at(rows)
        parts: dict[str, Any] = {"codes": csr_matrix((rows.size, self.space.num_latents))}
        constant = np.zeros(rows.size)
        for (_, term), (factor, offset) in zip(self.scorer.terms, self.scales(), strict=True):
            constant += offset
            if isinstance(term, Column):
                constant += factor * self.spaces.column(term)[rows]
            elif isinstance(term, SpaceScorer):
                space = self.spaces.get(term.space, self.recipe)
                addends = space.addends(self._seen_in(term.space), rows, term)
                addends.data *= factor * np.repeat(valid, np.diff(addends.indptr))
                parts[term.space] = addends + parts.get(term.space, 0 * addends)
        constant[~valid] = 0.0
        return Contributions(parts, constant)

    def scales(self) -> list[tuple[float, float]]:
        """What each term's score is multiplied by and what is added, before the terms are summed."""
        if not isinstance(self.scorer, Sum):
            return [(1.0, 0.0)]
        if self._moments is None:
            self.score()
        assert self._moments is not None
        return self.scorer.scales(self._moments.tolist())

    def state(self) -> dict[str, Tensor]:
        """Return what the passes over the corpus have found, so that rows can be explained without another.

        Returns:
            what has been learned in every space that the recipe looks at, by names that no other space has;
            ``fit.NAME``, float64 [FOLDS,F], the directions of a scorer that is fitted; for a sum ``moments``,
            float64 [terms, 2]: mean and standard deviation of each term's scores.
        """
        self.space.corpus_mean()  # whatever the scorer: coverage and comparisons look at it
        found = {
            name: torch.from_numpy(value)
            for space in self._names
            for name, value in self.spaces.state(space, self.recipe).items()
        }
        for space, targets in self._targets.items():
            fits = targets.everything.fits
            found |= {key: torch.from_numpy(fits[term]) for key, term in self._fits(space) if term in fits}
        if self._moments is not None:
            found["moments"] = self._moments
        return found


def score_together(scorings: Sequence[Scoring]) -> list[ScoreTable]:
    """Score as ``score_in_passes``; the scores of all rows are held in memory."""
    return [found.table() for found in score_in_passes(scorings)]


def score_in_passes(scorings: Sequence[Scoring], *, nearest: bool = True) -> list[Scores]:
    """Score the rows of one corpus against several target sets, in the passes that one of them takes.

    Of very many rows what is found lies on the disk: 12 bytes a row and scoring, and 8 for each of its terms.

    Args:
        scorings: of the same ``spaces``.
        nearest: whether the nearest target of every row is found too, which compares the rows with every
            single target, as most scorers don't; ``Scoring.nearest`` finds it of some rows.

    Raises:
        InputError, ValueError: as ``Scoring.score``; or scorings of several corpora.
    """
    if len({id(scoring.spaces) for scoring in scorings}) != 1:
        raise ValueError("scorings share a pass where they share their spaces; give each the same Spaces")
    shared: list[_Shared] = []
    passes = [Scores(scoring, shared, nearest) for scoring in scorings]
    views = [each.view() for each in shared]
    for rows, every in one_pass(views, scorings[0].space.block_rows):
        for each, seen in zip(shared, every, strict=True):
            each.add(rows, seen)
    for found in passes:
        found.finish()
    return passes


def nearest_of_each(
    scorings: Mapping[str, Scoring], rows: Mapping[str, IntArray]
) -> dict[str, tuple[IntArray, FloatArray]]:
    """Return the nearest targets of some rows of every scoring, as ``Scoring.nearest``; a row is read once.

    Args:
        scorings: of the same corpus, pooled and weighed alike.
        rows: int64 [R] row numbers, by the same names.
    """
    if not scorings:
        return {}
    every = np.unique(np.concatenate(list(rows.values())))
    space = next(iter(scorings.values())).space
    views = {name: View(each.space, each._seen_in("codes"), False) for name, each in scorings.items()}
    places = {name: np.searchsorted(every, wanted) for name, wanted in rows.items()}
    found = {name: (np.empty(len(wanted), np.int64), np.empty(len(wanted))) for name, wanted in rows.items()}
    for low, block in iter_blocks(PickedRows(space.corpus, every), rows_at_a_time(list(views.values()))):
        norms = weighted_norms(block, space.weights)
        for name, view in views.items():
            mine = np.flatnonzero((places[name] >= low) & (places[name] < low + len(block)))
            own, every_one = places[name][mine] - low, slice(0, mine.size)
            seen, nearest = view.see(block[own], norms[own]), Nearest(mine.size, view.targets)
            nearest.add(every_one, seen.cosines)
            for column, values in zip(found[name], nearest.of(every_one, seen.valid), strict=True):
                column[mine] = values
    return found


class _Shared:
    """A space in which several scorings look at the rows: their targets stand side by side."""

    def __init__(self, space: Space):
        self.space = space
        self._targets: list[Targets] = []
        self._with_mean = False
        self._nearest: list[tuple[Nearest, slice]] = []
        self._terms: dict[SpaceScorer, list[tuple[Pick, Spill]]] = {}

    def join(self, view: View, nearest: Nearest | None, terms: Sequence[tuple[SpaceScorer, Spill]]) -> None:
        """Take the targets of a view, what collects the nearest of them, and terms with their columns."""
        first = sum(targets.usable.size for targets in self._targets)
        self._targets.append(view.targets)
        self._with_mean = self._with_mean or view.with_mean
        if nearest is not None:
            self._nearest.append((nearest, slice(first, first + view.targets.usable.size)))
        pick = view.targets.everything
        pick = dataclasses.replace(pick, columns=pick.columns + first)
        for term, column in terms:
            self._terms.setdefault(term, []).append((pick, column))

    def view(self) -> View:
        """Return the space with all targets."""
        compared = self._nearest or any(term.compares for term in self._terms)
        numbers = None if compared else sum(map(len, self._terms.values()))
        return View(self.space, side_by_side(self._targets), self._with_mean, numbers)

    def add(self, rows: slice, seen: Seen) -> None:
        """Take what is seen of a block."""
        for nearest, columns in self._nearest:
            nearest.add(rows, seen.cosines[columns])
        for term, asked in self._terms.items():
            found = term.scores(seen, [pick for pick, _ in asked])
            for (_, column), scores in zip(asked, found, strict=True):
                column[rows] = scores


class Scores:
    """The scores of N rows by one scoring, as the passes have found them: given out a block at a time.

    Attributes:
        scoring: what gave them.
    """

    def __init__(self, scoring: Scoring, shared: list[_Shared], nearest: bool):
        self.scoring, self._rows = scoring, scoring.spaces.rows
        views = scoring.views()
        self._nearest = Nearest(self._rows, views["codes"].targets) if nearest else None
        self._columns: list[Numbers] = []
        of_space: dict[str, list[tuple[SpaceScorer, Spill]]] = {name: [] for name in views}
        for _, term in scoring.scorer.terms:
            if isinstance(term, Column):
                self._columns.append(scoring.spaces.column(term))
                continue
            self._columns.append(column := Spill(self._rows, np.float64))
            if isinstance(term, SpaceScorer):
                of_space[term.space].append((term, column))
        for name, view in views.items():
            place = next((each for each in shared if each.space is view.space), None)
            if place is None:
                shared.append(place := _Shared(view.space))
            place.join(view, self._nearest if name == "codes" else None, of_space[name])

    def __len__(self) -> int:
        return self._rows

    @property
    def scorer(self) -> str:
        """Name of the scorer."""
        return self.scoring.scorer.name

    @property
    def has_nearest(self) -> bool:
        """Whether the nearest target of every row was found."""
        return self._nearest is not None

    def finish(self) -> None:
        """Take note that all rows have been seen."""
        self.scoring.learn_moments(self._columns)

    def __getitem__(self, rows: slice) -> ScoreTable:
        """Return the scores of rows that stand one after the other."""
        scoring, valid = self.scoring, self.scoring.space.valid_in(rows)
        columns = [column[rows] for column in self._columns]
        score = added(columns, scoring.scales()) if isinstance(scoring.scorer, Sum) else columns[0].copy()
        score[~valid] = 0.0
        nearest = NOBODY if self._nearest is None else self._nearest.of(rows, valid)
        return ScoreTable(score, *nearest, valid, self.scorer)

    def table(self) -> ScoreTable:
        """Return the scores of all rows."""
        return self[slice(0, self._rows)]


def uses_mean(space: str, scorers: Iterable[Scorer]) -> bool:
    """Whether any of the scorers looks at ⟨μ, x̂⟩ in a space."""
    return any(isinstance(one, SpaceScorer) and one.space == space and one.uses_mean for one in scorers)
