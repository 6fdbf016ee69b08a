"""The report of a run: gather what its files hold, draw the figures, write the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.corpus.badrows import BadRow, said_of
from finescope.progress import counted
from finescope.report.data import About, Measured, Passage, RunData, ShownRow
from finescope.report.explain import Apart, Explanation, background_rows, examples_of, take_apart
from finescope.report.figures import BEST_ROWS, draw
from finescope.report.histogram import ScoreHistogram
from finescope.report.page import render
from finescope.storage.files import read_json, write_text
from finescope.workflow.layout import (
    CORPUS_CODES,
    METRICS,
    PLOTS,
    REPORT,
    SAE,
    SCORES,
    SELECTION,
    TARGET_CODES,
)
from finescope.workflow.stage import Stage
from finescope.workflow.stages.sinks import words_of
from finescope.workflow.tables import about_targets, read_selection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.corpus import Corpus
    from finescope.corpus.known import KnownRows
    from finescope.curation.compare import MethodResult
    from finescope.curation.selected import Selection
    from finescope.workflow.context import Context
    from finescope.workflow.labels import Labels
    from finescope.workflow.scored import Scored

LONGEST_TEXT = 20_000
"""Characters of a text that are read for the page; of longer ones it shows the beginning."""


@dataclass(frozen=True)
class Averaged:
    """Methods averaged over several target topics: the table of the demonstration."""

    topics: tuple[str, ...]
    methods: tuple[MethodResult, ...]


@dataclass(frozen=True)
class Report(Stage):
    """Writes the plots and the page of a run."""

    averaged: Averaged | None = None

    name = "report"
    reads = (SCORES, SELECTION, METRICS, CORPUS_CODES, TARGET_CODES, "corpus", "targets")
    writes = (REPORT, PLOTS)

    def work(self, context: Context) -> None:
        """Gather, draw, and write."""
        apart = shown_apart(context)
        write_report(context, self.averaged, apart, examples_of(context.scoring, [apart]))


def shown_apart(context: Context) -> Apart:
    """Take apart the scores of the rows that the report shows."""
    selection = read_selection(context.folder / SELECTION)
    return take_apart(context.scoring, selection.indices[: context.job.report_rows])


def write_report(
    context: Context, averaged: Averaged | None, apart: Apart, examples: Mapping[int, NDArray[np.int64]]
) -> None:
    """Write plots and page, given the scores of the rows that are shown and the examples of their latents."""
    data = gather(context, averaged, apart, examples)
    figures = draw(data, context.folder / PLOTS)
    write_text(context.folder / REPORT, render(data, figures))


def gather(
    context: Context, averaged: Averaged | None, apart: Apart, examples: Mapping[int, NDArray[np.int64]]
) -> RunData:
    """Collect what the report is made of. Of codes and texts, only those of rows that it shows are kept.

    Args:
        context: of the run.
        averaged: methods averaged over several topics.
        apart: of ``shown_apart``.
        examples: rows by latent, of ``examples_of``.

    Raises:
        StoreError: a row that is shown, of corpus or targets, isn't the one that was scored.
    """
    from finescope.sae.metrics import training_log

    job, labels = context.job, context.labels
    scored = context.scored()
    selection = read_selection(context.folder / SELECTION)
    metrics = read_json(context.folder / METRICS)
    scoring = context.scoring
    explanation = apart.explained(examples, background_rows(scored.valid_blocks, seed=job.seed))
    wanted = np.array(explanation.wanted(), np.int64)
    texts, latents = explanation.read(passages(context.corpus, wanted.tolist(), scored.known_at(wanted)))
    best = selection.indices[:BEST_ROWS]
    return RunData(
        about=_about(context, scored, selection, metrics),
        measured=Measured(
            metrics,
            training_log(context.home / SAE) if job.sae_path is None else (),
            None if averaged is None else (averaged.topics, [line.to_dict() for line in averaged.methods]),
        ),
        count=len(scored),
        scores=_histogram(scored, selection.indices, labels),
        ids=dict(zip(best.tolist(), scored.at(best).ids, strict=True)),
        target_ids=scored.target_ids,
        selected=selection.indices,
        corpus=scoring.space.corpus,
        targets=scoring.targets,
        weights=scoring.space.weights,
        rows=_shown_rows(context, scored, explanation, texts, labels),
        latents=latents,
    )


def _histogram(scored: Scored, selected: NDArray[np.int64], labels: Labels | None) -> ScoreHistogram:
    """Count the scores of the rows that are no targets."""

    def blocks() -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_] | None]]:
        for first, block in scored.blocks("score", "valid", "is_target"):
            counted = block["valid"] & ~block["is_target"]
            relevant = None if labels is None else labels.relevant_in(first, len(counted))
            yield np.where(counted, block["score"], np.nan), relevant

    return ScoreHistogram.of(blocks, scored.lowest(selected), labelled=labels is not None)


def passages(corpus: Corpus, wanted: Sequence[int], known: KnownRows) -> Iterator[tuple[int, Passage]]:
    """Yield (row number, beginning of its text) for some rows, in ascending order.

    Args:
        corpus: N rows.
        wanted: row numbers.
        known: what the N rows must be.

    Raises:
        InputError: there are fewer rows.
        StoreError: a row is another one.
    """
    for number, found in corpus.pick(wanted):
        known.refuse_changed(number, found)
        text = found.content
        yield number, Passage(found.id, text[:LONGEST_TEXT], len(text))


def _shown_rows(
    context: Context,
    scored: Scored,
    explanation: Explanation,
    texts: Mapping[int, Passage],
    labels: Labels | None,
) -> list[ShownRow]:
    table = scored.at(explanation.rows).table
    rows = explanation.rows.tolist()
    nearest = {int(target) for target in table.nearest_target if target >= 0}
    known = context.store(TARGET_CODES).known("targets")
    seeds = dict(passages(context.targets, sorted(nearest), known))
    wanted = set() if labels is None else set(labels.targets)
    return [
        ShownRow(
            rank=rank,
            passage=texts[row],
            score=float(table.score[rank - 1]),
            nearest=seeds.get(int(table.nearest_target[rank - 1])),
            similarity=float(table.nearest_similarity[rank - 1]),
            shares=shares,
            words=said,
            parts=parts,
            label=None if labels is None else labels.names[row],
            on_target=None if labels is None else labels.names[row] in wanted,
        )
        for rank, (row, shares, said, parts) in enumerate(
            zip(rows, explanation.shares, explanation.said, explanation.parts, strict=True), start=1
        )
    ]


def _about(context: Context, scored: Scored, selection: Selection, metrics: dict[str, Any]) -> About:
    labels = context.labels
    name = " and ".join(labels.targets) if labels is not None else context.targets.name
    seconds = [
        context.ledger.facts(stage).get("seconds", 0.0)
        for stage in ("activations", "train", "embed-corpus", "embed-targets")
    ]
    return About(
        title=f"Curated: {name}",
        subtitle=(
            f"{len(selection):,} of {counted(len(scored), 'row')} of {context.corpus.name}, chosen by "
            f"{counted(len(scored.target_ids), 'target')}"
        ),
        asked=_asked(context, scored, selection),
        warnings=_warnings(context, selection, metrics),
        method=context.job.recipe().name,
        seconds=sum(seconds) or None,
        settings=context.job.to_dict(),
    )


def _asked(context: Context, scored: Scored, selection: Selection) -> list[tuple[str, str]]:
    job, recipe, remark = context.job, context.job.recipe(), context.scoring.remark
    trained = context.ledger.facts("train")
    sae = "trained on the corpus"
    if job.sae_path is not None:
        said = context.ledger.facts("embed-corpus").get("autoencoder") or []
        sae = "; ".join([job.sae_path, *(words.removeprefix("autoencoder: ") for words in said)])
    if trained and job.sae_path is None:
        sae += f": {trained['latents']:,} latents, {trained['k']} per token, {trained['tokens']:,} tokens"
        if trained.get("fvu") is not None:
            sae += f", FVU {trained['fvu']:.3f}"
    limits = {
        name: value
        for name, value in selection.config.items()
        if value is not None and name not in ("seed", "num_clusters", "clusters_per_target")
    }
    return [
        ("Model", job.model or "none needed: the codes were there"),
        ("Layer", job.layer or _layer(context)),
        ("Targets", f"{job.targets} ({counted(len(scored.target_ids), 'row')})"),
        ("Corpus", ", ".join(job.corpus)),
        ("Autoencoder", sae),
        ("Attention sinks", _sinks(context)),
        ("Recipe", f"{recipe.name}: {recipe.summary}" + (f" ({remark})" if remark else "")),
        ("Selection", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in limits.items())),
    ]


def _sinks(context: Context) -> str:
    if context.job.sinks == "keep":
        return "kept"
    limit = context.ledger.facts("sinks").get("max_norm")
    words = words_of(context.store(CORPUS_CODES))
    return f"{words}: their norm is above {limit:,g}" if words and limit else "none found"


def _layer(context: Context) -> str:
    """Return which layer was read where the job doesn't name one."""
    source = context.store(CORPUS_CODES).facts.get("source") or {}
    if context.job.sae_path is not None and source.get("layer"):
        return str(source["layer"])
    return "the last block" + (f", {source['layer']}" if source.get("layer") else "")


def _warnings(context: Context, selection: Selection, metrics: dict[str, Any]) -> list[str]:
    found: list[str] = []
    wanted = selection.config.get("k")
    if wanted is not None and len(selection) < wanted:
        dropped = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in metrics["dropped"].items() if count
        )
        found.append(
            f"{len(selection):,} rows were selected, fewer than the {wanted:,} asked for. "
            f"The others: {dropped or 'there are no more rows'}."
        )
    if metrics["rows_without_code"]:
        found.append(
            f"Not scored, for want of text or latents: {counted(metrics['rows_without_code'], 'row')}."
        )
    said = [*selection.unfilled, *about_targets(metrics["targets_found"])]
    facts = context.ledger.facts("embed-corpus")
    said.append(said_of(map(BadRow.from_plain, facts.get("bad_rows") or ())))
    said += filter(None, [facts.get("refused_chats"), *(facts.get("warnings") or [])])
    found += (f"{words[:1].upper()}{words[1:]}." for words in said if words)
    return found
