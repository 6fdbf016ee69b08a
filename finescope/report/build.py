"""Assembling the figures and the page of one curation run from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import resident_codes, unit_rows
from finescope.report import plots
from finescope.report.explain import latent_examples, latent_words, score_contributions, strongest
from finescope.report.html import Figure, LatentShare, Report, SelectedRow, Table, render
from finescope.storage.files import write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.curation.scoring.onepass import CorpusScorer
    from finescope.curation.scoring.table import ScoreTable

LATENTS_PER_ROW = 5
BACKGROUND_ROWS = 3000
"""Rows sampled to know which words are common in the corpus."""
EXAMPLES_PER_LATENT = 12


@dataclass
class RunData:
    """What the report is made of. N corpus rows, Q targets, R selected rows."""

    table: ScoreTable
    ids: Sequence[str]
    target_ids: Sequence[str]
    selected: NDArray[np.int64]
    """int64 [R], best first."""
    is_target: NDArray[np.bool_]
    """bool [N], rows that are targets themselves."""
    prepared: CorpusScorer
    targets: SparseCodes
    scorer: str
    top_m: int
    texts: Mapping[int, str]
    """Texts of at least the rows that ``rows_to_read`` names."""
    target_texts: Sequence[str]
    metrics: Mapping[str, Any]
    labels: Sequence[str] | None = None
    target_labels: Sequence[str] = ()
    training: Sequence[Mapping[str, Any]] = ()
    """Records of the SAE's training log."""
    title: str = "Curated rows"
    subtitle: str = ""
    asked: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    settings: str = ""
    method: str = ""
    """Name of the run's own method in the table of methods."""
    averaged: tuple[Sequence[str], Sequence[Mapping[str, Any]]] | None = None
    """Several target domains and the methods averaged over them."""
    seconds: float | None = None
    shown: int = 100
    extra_figures: list[Figure] = field(default_factory=list)


@dataclass
class Explained:
    """Which latents carried the scores of the shown rows, and which rows make the latents legible."""

    latents: list[list[tuple[int, float]]]
    examples: dict[int, NDArray[np.int64]]
    background: NDArray[np.int64]


def explain_rows(
    prepared: CorpusScorer,
    targets: SparseCodes,
    table: ScoreTable,
    shown: NDArray[np.int64],
    scorer: str,
    top_m: int,
    seed: int = 42,
) -> Explained:
    """Take the scores of the shown rows apart and pick the rows whose texts will name the latents."""
    codes = resident_codes(prepared.corpus)
    if len(shown) == 0:
        return Explained([], {}, np.zeros(0, np.int64))
    parts = score_contributions(prepared, targets, shown, scorer, m=top_m)
    latents = strongest(parts, LATENTS_PER_ROW)
    examples = latent_examples(codes, [latent for row in latents for latent, _ in row], EXAMPLES_PER_LATENT)
    rows = np.flatnonzero(table.valid)
    if len(rows) > BACKGROUND_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, BACKGROUND_ROWS, replace=False))
    return Explained(latents, examples, rows)


def rows_to_read(explained: Explained, shown: NDArray[np.int64]) -> list[int]:
    """Return the rows whose texts the report needs."""
    wanted = {int(row) for row in shown} | {int(row) for row in explained.background}
    wanted.update(int(row) for rows in explained.examples.values() for row in rows)
    return sorted(wanted)


def write_report(folder: Path, data: RunData, explained: Explained) -> list[str]:
    """Write ``plots/*.png`` and ``report.html`` below ``folder``; return the names of the files.

    Raises:
        StoreError: a file can't be written.
    """
    figures = [*_figures(folder / "plots", data), *data.extra_figures]
    report = Report(
        title=data.title,
        subtitle=data.subtitle,
        facts=_facts(data),
        asked=list(data.asked),
        warnings=list(data.warnings),
        verdict=_verdict(data),
        methods=_methods(data),
        methods_note=_methods_note(data),
        averaged=_method_table(data.averaged[1], data.method) if data.averaged else None,
        averaged_note=_averaged_note(data),
        quality=_quality(data.metrics.get("quality")),
        figures=figures,
        rows=_rows(data, explained),
        total_selected=len(data.selected),
        rows_note=(
            "Best first. Bars show how much each latent of the autoencoder adds to the row's score; all "
            "latents of "
            "a row together give the score exactly. The words are typical for the rows in which the latent "
            "is strong."
        ),
        settings=data.settings,
    )
    write_text(folder / "report.html", render(report))
    return ["report.html", *(str(figure.path.relative_to(folder)) for figure in figures)]


def _figures(folder: Path, data: RunData) -> list[Figure]:
    figures: list[Figure] = []
    table = data.table
    labelled = data.metrics.get("labels")
    if labelled and labelled.get("methods"):
        lines = labelled["methods"]
        values = [line["metrics"]["average_precision"] for line in lines]
        plots.method_dots(
            folder / "methods.png",
            [line["name"] for line in lines],
            [value["value"] or 0.0 for value in values],
            [None if v["low"] == v["high"] else (v["low"], v["high"]) for v in values],
            highlight=data.method,
        )
        figures.append(
            Figure(folder / "methods.png", "Methods", "Average precision of every method, with intervals.")
        )
    positive = None
    if data.labels is not None and labelled:
        wanted = set(data.target_labels)
        positive = np.fromiter((name in wanted for name in data.labels), np.bool_, len(data.labels))
    scores = np.where(table.valid & ~data.is_target, table.score, np.nan)
    cut = float(table.score[data.selected].min()) if len(data.selected) else None
    plots.score_histogram(folder / "scores.png", scores, cut, positive=positive)
    figures.append(
        Figure(
            folder / "scores.png",
            "Scores",
            "How many rows have which score (targets left out), and where the selection cuts.",
        )
    )
    if labelled:
        distribution = labelled["distribution"]
        totals = {name: round(entry["corpus_share"] * len(table)) for name, entry in distribution.items()}
        counts = {name: int(entry["count"]) for name, entry in distribution.items()}
        plots.domain_bars(folder / "labels.png", counts, totals, target=data.target_labels)
        figures.append(
            Figure(folder / "labels.png", "Labels", "Labels of the selected rows beside those of the corpus.")
        )
    weights = data.prepared.weights
    codes = resident_codes(data.prepared.corpus)
    plots.pca_scatter(folder / "pca.png", codes, data.targets, data.selected, weights=weights)
    figures.append(
        Figure(
            folder / "pca.png",
            "Map of the documents",
            "Principal components of the weighted codes. Two components show little of a high-dimensional "
            "space: "
            "selected rows need not form an island here.",
        )
    )
    best = data.selected[:60]
    if len(best) and len(data.targets):
        similarity = (unit_rows(data.targets, weights) @ unit_rows(codes[best], weights).T).toarray()
        plots.similarity_heatmap(
            folder / "similarity.png", similarity, list(data.target_ids), [data.ids[row] for row in best]
        )
        figures.append(
            Figure(
                folder / "similarity.png", "Similarity", "Cosine of every target with the best selected rows."
            )
        )
    steps = [record for record in data.training if record.get("event") == "step"]
    if len(steps) > 1:
        plots.training_curve(
            folder / "training.png",
            [record["step"] for record in steps],
            {
                "FVU": [record["fvu"] for record in steps],
                "dead latents": [record["dead_fraction"] for record in steps],
            },
        )
        figures.append(
            Figure(
                folder / "training.png",
                "Training",
                "Share of the activations' variance that the autoencoder leaves unexplained (FVU), and of "
                "its latents "
                "that have stopped firing.",
            )
        )
    return figures


def _facts(data: RunData) -> list[tuple[str, str]]:
    from finescope.progress import duration

    facts = [(f"{len(data.selected):,}", "rows selected"), (f"{len(data.table):,}", "rows scored")]
    facts.append((f"{len(data.target_ids):,}", "targets"))
    labelled = data.metrics.get("labels")
    if labelled and labelled["selected_precision"] is not None:
        facts.append((f"{labelled['selected_precision']:.1%}", "of the selection on target"))
        own = next((line for line in labelled.get("methods", ()) if line["name"] == data.method), None)
        if own is not None:
            facts.append((f"{own['metrics']['average_precision']['value']:.3f}", "average precision"))
    if data.seconds is not None:
        facts.append((duration(data.seconds), "run time"))
    return facts


def _verdict(data: RunData) -> str:
    labelled = data.metrics.get("labels")
    if not labelled:
        needs = ", ".join(data.metrics.get("needs_labels", ()))
        return (
            "The corpus has no known labels, so nobody can say from this run alone how many of the "
            "selected rows "
            f"belong to the domain. Not measured: {needs}. To get these numbers and the baselines, run "
            "again with "
            "--label-column on a corpus (or a sample) whose rows are labelled. Until then read the rows "
            "below, from the "
            "last ones up: precision falls with the rank."
        )
    share = labelled["relevant_rows"] / max(1, len(data.table))
    return (
        f"Rows whose {labelled['column']} is {' or '.join(labelled['target_labels'])} count as the target "
        "domain: "
        f"{labelled['relevant_rows']:,} rows that could be found, {share:.2%} of the corpus. Targets "
        "themselves are "
        "left out. Every method ranked the same rows for the same targets."
    )


def _methods(data: RunData) -> Table | None:
    labelled = data.metrics.get("labels")
    if not labelled or not labelled.get("methods"):
        return None
    return _method_table(labelled["methods"], data.method)


def _averaged_note(data: RunData) -> str:
    if not data.averaged:
        return ""
    names = ", ".join(data.averaged[0])
    return (
        f"The same for {len(data.averaged[0])} target domains, each with targets of its own ({names}): "
        "mean over domains, "
        "with 95 % bootstrap intervals over domains. One domain says little; this is the table to judge "
        "methods by."
    )


def _method_table(lines: Sequence[Mapping[str, Any]], method: str) -> Table:
    names = [name for name in lines[0]["metrics"] if name != "average_precision"]
    shown = [name for name in names if name.startswith("precision@")]
    shown += [name for name in names if name.startswith("lift@")][-1:]
    rows = []
    for line in lines:
        value = line["metrics"]["average_precision"]
        interval = "" if value["low"] == value["high"] else f"{value['low']:.3f} – {value['high']:.3f}"
        cells = [line["name"], _decimal(value["value"]), interval]
        cells += [
            _decimal(line["metrics"][name]["value"], 1 if name.startswith("lift") else 3) for name in shown
        ]
        rows.append(cells)
    highlight = next((at for at, line in enumerate(lines) if line["name"] == method), None)
    return Table(["method", "average precision", "95 % interval", *shown], rows, highlight)


def _methods_note(data: RunData) -> str:
    if not data.metrics.get("labels"):
        return ""
    return (
        "The bold line made this selection. Intervals are bootstrap intervals: over targets drawn with "
        "replacement, for random over orders. A draw that holds some targets twice lacks others, so its "
        "value is lower, and that of all targets lies near the upper end. Lift is precision divided by that "
        "of a random order."
    )


_QUALITY_NAMES = {
    "avg_similarity_to_target": "average similarity of selected rows and targets",
    "min_similarity_to_target": "lowest similarity",
    "max_similarity_to_target": "highest similarity",
    "diversity_of_selected": "diversity (1 − mean similarity among the selected)",
    "vendi_score": "Vendi score (effective number of different rows)",
    "target_coverage": "targets with a selected row at cosine ≥ {target_coverage_threshold}",
    "latent_coverage": "latent coverage",
    "length_bias": "length bias",
}


def _quality(quality: Mapping[str, Any] | None) -> Table | None:
    if not quality:
        return None
    rows: list[list[str]] = []
    for name, words in _QUALITY_NAMES.items():
        value = quality.get(name)
        if isinstance(value, Mapping):
            rows += [[f"{words}: {key.replace('_', ' ')}", _decimal(inner)] for key, inner in value.items()]
        elif name in quality:
            rows.append([words.format(**quality), _decimal(value)])
    return Table(["quality of the selection", "value"], rows)


def _decimal(value: Any, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _rows(data: RunData, explained: Explained) -> list[SelectedRow]:
    background = [data.texts[int(row)] for row in explained.background]
    words = latent_words(explained.examples, lambda row: data.texts[row], background)
    wanted = set(data.target_labels)
    rows: list[SelectedRow] = []
    for place, row in enumerate(data.selected[: data.shown].tolist()):
        target = int(data.table.nearest_target[row])
        label = None if data.labels is None else data.labels[row]
        rows.append(
            SelectedRow(
                rank=place + 1,
                id=data.ids[row],
                text=data.texts[row],
                score=float(data.table.score[row]),
                nearest_id=data.target_ids[target] if target >= 0 else "",
                nearest_text=data.target_texts[target] if target >= 0 else "",
                nearest_similarity=float(data.table.nearest_similarity[row]),
                latents=[
                    LatentShare(latent, share, words.get(latent, ""))
                    for latent, share in explained.latents[place]
                ],
                label=label,
                on_target=None if label is None or not wanted else label in wanted,
            )
        )
    return rows


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return the configuration as indented JSON for the page."""
    return json.dumps(settings, indent=2, ensure_ascii=False, default=str)
