"""Handing a run's files to the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finescope.progress import counted
from finescope.report.build import RunData, explain_rows, rows_to_read, settings_text, write_report
from finescope.workflow import stages
from finescope.workflow.layout import CORPUS_CODES
from finescope.workflow.tables import texts_of

if TYPE_CHECKING:
    from finescope.curation.selection import Selection
    from finescope.workflow.run import Run
    from finescope.workflow.stages.evaluate import Labels
    from finescope.workflow.tables import ScoredRows


def write_run_report(
    run: Run, scored: ScoredRows, selection: Selection, metrics: dict[str, Any], labels: Labels | None
) -> None:
    """Write the plots and the page of a run into its folder."""
    job, recipe = run.job, run.job.recipe()
    prepared, targets = run.prepared()
    shown = selection.indices[: job.report_rows]
    explained = explain_rows(prepared, targets, scored.table, shown, recipe.scorer, job.top_m, job.seed)
    seconds = [
        run.ledger.facts(name).get("seconds", 0.0) for name in ("train", "embed-corpus", "embed-targets")
    ]
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
        texts=texts_of(run.corpus, rows_to_read(explained, shown)),
        target_texts=[row.content for row in run.targets.rows(records=False)],
        metrics=metrics,
        labels=None if labels is None else labels.names,
        target_labels=() if labels is None else labels.targets,
        training=stages.training_log(run.out / "sae") if job.sae_path is None else (),
        title=_title(run, labels),
        subtitle=(
            f"{len(selection):,} of {len(scored.table):,} rows of {run.corpus.name}, chosen by "
            f"{len(scored.target_ids)} targets"
        ),
        asked=_asked(run, selection),
        warnings=_warnings(scored, selection, metrics),
        settings=settings_text(job.to_dict()),
        method=f"codes: {recipe.name}",
        averaged=(
            (run.averaged[0], [line.to_dict() for line in run.averaged[1]])
            if run.averaged is not None
            else None
        ),
        seconds=sum(seconds) or None,
        shown=job.report_rows,
    )
    write_report(run.out, data, explained)


def _title(run: Run, labels: Labels | None) -> str:
    name = " and ".join(labels.targets) if labels is not None else run.targets.name
    return f"Curated: {name}"


def _asked(run: Run, selection: Selection) -> list[tuple[str, str]]:
    job, recipe = run.job, run.job.recipe()
    trained = run.ledger.facts("train")
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
        ("Layer", job.layer or f"the last block{_name_of_layer(run)}"),
        ("Targets", f"{job.targets} ({len(run.prepared()[1])} rows)"),
        ("Corpus", ", ".join(job.corpus)),
        ("Autoencoder", sae),
        ("Recipe", f"{recipe.name}: {recipe.summary}"),
        ("Selection", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in limits.items())),
    ]


def _name_of_layer(run: Run) -> str:
    source = run.store(CORPUS_CODES).facts.get("source") or {}
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
