"""Handing a run's files to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finescope.progress import counted
from finescope.report.build import RunData, explain_rows, rows_to_read, settings_text, write_report
from finescope.storage.files import read_json
from finescope.workflow.layout import CORPUS_CODES, METRICS, REPORT, SAE, SCORES, SELECTION, TARGET_CODES
from finescope.workflow.stage import Stage
from finescope.workflow.tables import read_scores, read_selection

if TYPE_CHECKING:
    from finescope.corpus import Corpus
    from finescope.curation.compare import MethodResult
    from finescope.curation.selection import Selection
    from finescope.workflow.context import Context
    from finescope.workflow.labels import Labels
    from finescope.workflow.tables import ScoredRows


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
    writes = (REPORT, "plots")

    def work(self, context: Context) -> None:
        """Explain the selected rows, draw, and write."""
        from finescope.sae.metrics import training_log

        job, recipe = context.job, context.job.recipe()
        scored = read_scores(context.folder / SCORES)
        selection = read_selection(context.folder / SELECTION)
        metrics = read_json(context.folder / METRICS)
        prepared, targets = context.prepared
        labels = context.labels
        shown = selection.indices[: job.report_rows]
        explained = explain_rows(prepared, targets, scored.table, shown, recipe.scorer, job.top_m, job.seed)
        seconds = [
            context.ledger.facts(name).get("seconds", 0.0)
            for name in ("activations", "train", "embed-corpus", "embed-targets")
        ]
        averaged = self.averaged
        data = RunData(
            table=scored.table,
            ids=scored.ids,
            target_ids=scored.target_ids,
            selected=selection.indices,
            is_target=scored.is_target,
            prepared=prepared,
            targets=targets,
            scorer=recipe.scorer,
            top_m=job.top_m,
            texts=texts_of(context.corpus, rows_to_read(explained, shown)),
            target_texts=[row.content for row in context.targets.rows(records=False)],
            metrics=metrics,
            labels=None if labels is None else labels.names,
            target_labels=() if labels is None else labels.targets,
            training=training_log(context.folder / SAE) if job.sae_path is None else (),
            title=_title(context, labels),
            subtitle=(
                f"{len(selection):,} of {len(scored.table):,} rows of {context.corpus.name}, chosen by "
                f"{len(scored.target_ids)} targets"
            ),
            asked=_asked(context, selection),
            warnings=_warnings(scored, selection, metrics),
            settings=settings_text(job.to_dict()),
            method=f"codes: {recipe.name}",
            averaged=None
            if averaged is None
            else (averaged.topics, [line.to_dict() for line in averaged.methods]),
            seconds=sum(seconds) or None,
            shown=job.report_rows,
        )
        write_report(context.folder, data, explained)


def _title(context: Context, labels: Labels | None) -> str:
    name = " and ".join(labels.targets) if labels is not None else context.targets.name
    return f"Curated: {name}"


def _asked(context: Context, selection: Selection) -> list[tuple[str, str]]:
    job, recipe = context.job, context.job.recipe()
    trained = context.ledger.facts("train")
    sae = f"{job.sae_path}" if job.sae_path is not None else "trained on the corpus"
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
        ("Layer", job.layer or f"the last block{_name_of_layer(context)}"),
        ("Targets", f"{job.targets} ({len(context.prepared[1])} rows)"),
        ("Corpus", ", ".join(job.corpus)),
        ("Autoencoder", sae),
        ("Recipe", f"{recipe.name}: {recipe.summary}"),
        ("Selection", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in limits.items())),
    ]


def _name_of_layer(context: Context) -> str:
    source = context.store(CORPUS_CODES).facts.get("source") or {}
    return f", {source['layer']}" if source.get("layer") else ""


def _warnings(scored: ScoredRows, selection: Selection, metrics: dict[str, Any]) -> list[str]:
    found: list[str] = []
    wanted = selection.config.get("k")
    if wanted is not None and len(selection) < wanted:
        dropped = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in metrics["dropped"].items() if count
        )
        found.append(
            f"{len(selection):,} rows were selected, fewer than the {wanted:,} asked for. The others: "
            f"{dropped}."
        )
    if metrics["rows_without_code"]:
        found.append(
            f"Not scored, for want of text or latents: {counted(metrics['rows_without_code'], 'row')}."
        )
    if metrics["targets_in_corpus"]:
        found.append(
            "Never selected, because they are targets (same id or same text): "
            f"{counted(metrics['targets_in_corpus'], 'row')} of the corpus."
        )
    return found


def texts_of(corpus: Corpus, wanted: Sequence[int] | None) -> Mapping[int, str]:
    """Read the texts of some rows (of all rows, when ``wanted`` is None) in one pass."""
    if wanted is None:
        return {index: row.content for index, row in enumerate(corpus.rows(records=False))}
    left = set(wanted)
    found: dict[int, str] = {}
    for index, row in enumerate(corpus.rows(records=False)):
        if index in left:
            found[index] = row.content
            if len(found) == len(left):
                break
    return found
