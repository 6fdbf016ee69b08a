"""Questions to a finished run: why a row was chosen, what a latent stands for, what sets rows apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import PickedRows
from finescope.curation.enrichment import Enriched, enriched, holders, neighbours
from finescope.curation.limits import REASONS, SelectionConfig
from finescope.errors import FineScopeError, InputError
from finescope.report.explain import BACKGROUND_ROWS, CONSTANT, background_rows, explain
from finescope.report.latents import LatentWords, latent_examples
from finescope.workflow.layout import CORPUS_CODES, SAE, SELECTION
from finescope.workflow.scored import Scored
from finescope.workflow.stages.report import passages
from finescope.workflow.stages.score import same_sae
from finescope.workflow.tables import read_selection
from finescope.workflow.tokens import StrongToken, strongest_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.embeddings.store import CodeStore
    from finescope.sae import Autoencoder
    from finescope.workflow.context import Context

EXAMPLES = 12
"""Rows from whose texts a latent gets its words."""
NEIGHBOURS = 5


@dataclass(frozen=True)
class Why:
    """Why a row has the score it has, and what became of it.

    Attributes:
        row, id: which row.
        score: its score.
        place: its place among all valid rows by score, from 1; None where it is not valid.
        reason: what became of it, a name of ``REASONS``.
        rank: its rank in the selection, from 1; None where it isn't in it.
        nearest, similarity: id of the nearest target and its cosine.
        parts: the score by space; with ``constant`` they sum to it.
        constant: what no space accounts for.
        others: by space, how many latents, words or dimensions have a part in the score and aren't among the
            strongest, and the sum of their parts.
        latents: the strongest latents: number, part in the score, words.
        words: the strongest words and their parts, where the scorer looks at words.
        text: its text, or the beginning.
    """

    row: int
    id: str
    score: float
    place: int | None
    reason: str
    rank: int | None
    nearest: str | None
    similarity: float
    parts: dict[str, float]
    constant: float
    others: dict[str, tuple[int, float]]
    latents: list[tuple[int, float, str]]
    words: list[tuple[str, float]]
    text: str


@dataclass(frozen=True)
class Sight:
    """What is known of a latent.

    Attributes:
        latent: its number.
        words: words that are typical for its strongest rows.
        rows: corpus rows that hold it.
        share: of all corpus rows.
        selected: selected rows that hold it.
        examples: id, text and share of the row's code, of its strongest rows, best first.
        neighbours: latents with the nearest decoder rows, and the cosines; none where the SAE isn't there.
        tokens: those at which it is strongest, of its strongest rows; none where the SAE isn't there, or
            neither activations nor the model were to be had.
    """

    latent: int
    words: str
    rows: int
    share: float
    selected: int
    examples: list[tuple[str, str, float]]
    neighbours: list[tuple[int, float]]
    tokens: list[StrongToken]


def find_rows(scored: Scored, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows that some ids name, or "#N" for row N, counted from 0.

    Raises:
        InputError: there is no such row, or an id stands for several.
    """
    wanted = {name: list[int]() for name in names}
    for row, name in enumerate(scored.ids):
        if name in wanted:
            wanted[name].append(row)
    found = []
    for name in names:
        rows = wanted[name]
        if not rows and name.startswith("#") and name[1:].isdecimal() and int(name[1:]) < len(scored.ids):
            rows = [int(name[1:])]
        if not rows:
            raise InputError(f"no row has the id {name!r}; #N is row N of {len(scored.ids):,}, from 0")
        if len(rows) > 1:
            raise InputError(f"{len(rows)} rows have the id {name!r}; give a number: #{rows[0]}, …")
        found.append(rows[0])
    return np.array(found, np.int64)


def why(context: Context, names: Sequence[str]) -> list[Why]:
    """Explain some rows of a run.

    Args:
        context: of the run.
        names: see ``find_rows``.

    Raises:
        InputError: as ``find_rows``.
        StoreError: the run's files aren't there, or the corpus has changed.
    """
    scored = context.scored()
    selection = read_selection(context.folder / SELECTION)
    rows = find_rows(scored, names)
    background = background_rows(scored.valid_blocks, seed=context.job.seed)
    explanation = explain(context.scoring, background, rows)
    wanted = np.array(explanation.wanted(), np.int64)
    texts, latents = explanation.read(passages(context.corpus, wanted.tolist(), scored.known_at(wanted)))
    found = context.scoring.contributions(rows)
    nearest, similarity = scored.nearest(rows)
    targets = scored.names_of(nearest)
    table = scored.table_for(SelectionConfig())
    ranking = table.ranking()
    place = np.zeros(len(scored), np.int64)
    place[ranking] = np.arange(1, ranking.size + 1)
    reasons = np.asarray(selection.reason)
    rank = {int(row): at for at, row in enumerate(selection.indices, start=1)}
    listed = [
        {"codes": [share.value for share in shares], "words": [value for _, value in said]}
        for shares, said in zip(explanation.shares, explanation.said, strict=True)
    ]
    return [
        Why(
            row=row,
            id=scored.ids[row],
            score=float(table.score[row]),
            place=int(place[row]) or None,
            reason=REASONS[reasons[row]],
            rank=rank.get(row),
            nearest=targets[at],
            similarity=float(similarity[at]),
            parts={space: part for space, part in explanation.parts[at].items() if space != CONSTANT},
            constant=explanation.parts[at][CONSTANT],
            others={
                space: _others(part[at], listed[at].get(space, ())) for space, part in found.parts.items()
            },
            latents=[
                (share.latent, share.value, latents[share.latent].words) for share in explanation.shares[at]
            ],
            words=explanation.said[at],
            text=texts[row].text,
        )
        for at, row in enumerate(rows.tolist())
    ]


def _others(part: Any, listed: Sequence[float]) -> tuple[int, float]:
    """How many addends of a row aren't listed, and their sum."""
    return int(np.count_nonzero(part.data)) - len(listed), float(part.sum()) - math.fsum(listed)


def look_at(
    context: Context, latents: Sequence[int], shown: int = 3, tokens: int = 0, *, run_model: bool = False
) -> list[Sight]:
    """Say what is known of some latents of a run.

    Args:
        context: of the run.
        latents: their numbers.
        shown: examples of each.
        tokens: of each, at most.
        run_model: whether the model reads the rows whose activations aren't stored, for the sake of tokens.

    Raises:
        InputError: there is no latent of a number, or none is named; or as ``strongest_tokens``.
        StoreError: as ``why``.
    """
    if not latents:
        raise InputError("no latent carries the scores of the selected rows; name some by their numbers")
    codes = context.store(CORPUS_CODES)
    wrong = [latent for latent in latents if not 0 <= latent < codes.num_latents]
    if wrong:
        raise InputError(f"there is no latent {wrong[0]}; the run has {codes.num_latents:,}, from 0")
    selection = read_selection(context.folder / SELECTION)
    groups = np.zeros(len(codes), np.int64)
    groups[selection.indices] = 1
    counts, _ = holders(codes, groups, 2)
    examples = latent_examples(codes, latents, EXAMPLES)
    words, texts = _read(context, examples, shown)
    sae = _autoencoder(context)
    decoder = None if sae is None else sae.W_dec.detach().double().numpy()
    strong = (
        {}
        if sae is None or not tokens
        else strongest_tokens(context, sae, examples, tokens, run_model=run_model)
    )
    held = np.unique(np.concatenate(list(examples.values())))
    shares = _shares(codes.take(held), held)
    return [
        Sight(
            latent,
            words.words(latent),
            int(counts[:, latent].sum()),
            float(counts[:, latent].sum()) / len(codes),
            int(counts[1, latent]),
            [(*texts[row], shares[row, latent]) for row in examples[latent][:shown].tolist()],
            [] if decoder is None else neighbours(decoder, latent, NEIGHBOURS),
            strong.get(latent, []),
        )
        for latent in latents
    ]


def strongest_latents(context: Context, count: int) -> list[int]:
    """Return the latents that carry the scores of the selected rows, by their mean part, largest first."""
    selection = read_selection(context.folder / SELECTION)
    parts = context.scoring.contributions(selection.indices).latents
    sums = np.bincount(parts.indices, weights=parts.data, minlength=parts.shape[1])
    order = np.argsort(-sums, kind="stable")[:count]
    return [int(latent) for latent in order if sums[latent] > 0]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: rows of a store of codes.

    Attributes:
        name: in words.
        codes: the store.
        rows: int64, ascending.
        context: of the run that they are from; None for a folder of codes.
    """

    name: str
    codes: CodeStore
    rows: NDArray[np.int64]
    context: Context | None


def difference(first: Side, second: Side, *, level: float = 0.95) -> Enriched:
    """Compare the latents of two sides. Rows of one store that are on both sides count for the first.

    Raises:
        InputError: codes of different SAEs, or a side without rows.
    """
    if first.codes.num_latents != second.codes.num_latents:
        raise InputError(
            f"{first.name} has codes over {first.codes.num_latents:,} latents and {second.name} over "
            f"{second.codes.num_latents:,}; compare codes of one SAE"
        )
    if not same_sae(first.codes, second.codes):
        raise InputError(f"{first.name} and {second.name} hold codes of different SAEs; compare codes of one")
    if first.codes.directory == second.codes.directory:
        groups = np.full(len(first.codes), -1, np.int64)
        groups[second.rows], groups[first.rows] = 1, 0
        return enriched(*holders(first.codes, groups, 2), level=level)
    counts = [holders(PickedRows(side.codes, side.rows)) for side in (first, second)]
    return enriched(
        np.concatenate([found for found, _ in counts]), [int(rows[0]) for _, rows in counts], level=level
    )


def words_of_side(side: Side, latents: Iterable[int], shown: int = 1) -> dict[int, tuple[str, list[str]]]:
    """Return for latents, from a side's own rows, typical words and the ids of the strongest rows.

    There are no words where the side is a folder of codes, which holds no texts.
    """
    wanted = list(latents)
    picked = latent_examples(PickedRows(side.codes, side.rows), wanted, EXAMPLES)
    examples = {latent: side.rows[rows] for latent, rows in picked.items()}
    ids = side.codes.ids()
    if side.context is None:
        return {latent: ("", [ids[row] for row in rows[:shown]]) for latent, rows in examples.items()}
    words, _ = _read(side.context, examples, shown)
    return {
        latent: (words.words(latent), [ids[row] for row in rows[:shown]]) for latent, rows in examples.items()
    }


def _read(
    context: Context, examples: dict[int, NDArray[np.int64]], shown: int
) -> tuple[LatentWords, dict[int, tuple[str, str]]]:
    """The words of latents, and id and text of their first examples, by row."""
    store = context.store(CORPUS_CODES)
    rows, known = len(store), store.known("corpus")
    background = np.arange(rows)
    if rows > BACKGROUND_ROWS:
        generator = np.random.default_rng(context.job.seed)
        background = np.sort(generator.choice(background, BACKGROUND_ROWS, replace=False))
    words = LatentWords(examples, background.tolist())
    kept = {row for found in examples.values() for row in found[:shown].tolist()}
    texts = {}
    for row, passage in passages(context.corpus, sorted(words.wanted()), known):
        words.see(row, passage.text)
        if row in kept:
            texts[row] = passage.id, passage.text
    return words, texts


def _shares(codes: Any, rows: NDArray[np.int64]) -> dict[tuple[int, int], float]:
    """The share that each latent has in the code of some rows, c / ‖c‖."""
    from finescope.curation.blocks import unit_rows

    unit = unit_rows(codes).tocoo()
    return {
        (int(rows[at]), int(latent)): float(value)
        for at, latent, value in zip(unit.row, unit.col, unit.data, strict=True)
    }


def _autoencoder(context: Context) -> Autoencoder | None:
    """The run's SAE, on the CPU; None where it can't be read any more."""
    from finescope.workflow.opening import find_sae, load_sae

    job = context.job
    try:
        place = context.home / SAE if job.sae_path is None else find_sae(job.sae_path, job.layer or None)
        return None if place is None else load_sae(place, "cpu", facts=job.sae_facts)
    except (FineScopeError, OSError):
        return None
