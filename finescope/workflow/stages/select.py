"""Selecting rows by their scores, and writing them as they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finescope.corpus import OUTPUTS
from finescope.curation.limits import SelectionConfig
from finescope.curation.quotas import select_by_score
from finescope.curation.selected import Selection
from finescope.curation.selection import select
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.workflow.layout import SCORES, SELECTION
from finescope.workflow.scored import Scored
from finescope.workflow.stage import Stage
from finescope.workflow.tables import about_targets, write_each_curated, write_selection

if TYPE_CHECKING:
    from finescope.codes import SparseCodes
    from finescope.curation.scoring.onepass import CorpusScorer
    from finescope.workflow.context import Context


@dataclass(frozen=True)
class Select(Stage):
    """Selects rows by the job's limits and writes them in the format of the corpus."""

    name = "select"
    reads = (SCORES, "corpus")
    writes = (SELECTION, *(f"curated{ending}" for ending in OUTPUTS))

    def work(self, context: Context) -> None:
        """Select; write the curated rows and what became of the others.

        Raises:
            InputError: quotas without a column of labels, or not one row that could be selected.
        """
        limits = context.job.selection_config()
        scored = context.scored()
        codes = context.scoring.space if limits.look_at_codes else None
        targets = context.scoring.targets if limits.look_at_codes else None
        labels = context.labels if limits.quotas else None
        if limits.quotas and labels is None:
            raise InputError("quotas are of labels: name their column with --label-column")
        names = None if labels is None else labels.names
        selection = select_rows(scored, limits, codes, targets, names)
        _refuse_none(selection.counts, len(scored))
        write_chosen({"": context}, {"": scored}, {"": selection})
        _say(context.reporter, scored, selection, limits.k)


def _refuse_none(counts: Mapping[str, int], rows: int) -> None:
    if counts["invalid"] == rows:
        raise InputError(
            f"none of the {rows:,} rows can be scored: the autoencoder keeps nothing of any. There are too "
            "few tokens to train one on, or all are alike; give more rows, or an autoencoder (--sae)"
        )
    if counts["invalid"] + counts["target"] == rows:
        raise InputError(
            f"there is nothing to select: {counts['target']:,} of the {rows:,} rows are targets themselves, "
            "and no other can be scored; the corpus is where rows like the targets are looked for (--corpus)"
        )


def write_chosen(
    contexts: Mapping[str, Context], scored: Mapping[str, Scored], selections: Mapping[str, Selection]
) -> None:
    """Write by target set the selected rows, and what became of the others."""
    write_each_curated(
        {name: curated_path(context) for name, context in contexts.items()},
        next(iter(contexts.values())).corpus,
        scored,
        {name: selection.indices for name, selection in selections.items()},
    )
    for name, context in contexts.items():
        for ending in OUTPUTS:
            if ending != context.output_ending:  # of an earlier corpus in another format
                (context.folder / f"curated{ending}").unlink(missing_ok=True)
        alone = context.folder == context.home  # beside several target sets the rows have a table
        write_selection(context.folder / SELECTION, scored[name], selections[name], rows=alone)


def select_rows(
    scored: Scored,
    limits: SelectionConfig,
    corpus: CorpusScorer | None,
    targets: SparseCodes | None,
    labels: Sequence[str] | None = None,
) -> Selection:
    """Select rows of a table of scores.

    Args:
        scored: the table.
        limits: of the selection.
        corpus: the codes as they were scored, where the limits look at codes.
        targets: those of the targets, likewise, where the strategy looks at them.
        labels: of the rows, where there are quotas.
    """
    if not limits.look_at_codes:
        return select_by_score(len(scored), partial(scored.row_blocks, limits), limits, labels)
    return select(
        scored.table_for(limits),
        limits,
        tokens=scored.tokens,
        exclude=scored.is_target,
        scorer=corpus,
        targets=targets,
        labels=labels,
    )


def curated_path(context: Context) -> Path:
    """Return the file of the curated rows."""
    return context.folder / f"curated{context.output_ending}"


def _say(reporter: Reporter, scored: Scored, selection: Selection, wanted: int | None) -> None:
    reporter.say(f"selected {len(selection):,} of {len(scored):,} rows")
    if wanted is not None and len(selection) < wanted:
        reasons = selection.dropped() or "there are no more rows"
        reporter.say(f"fewer than the {wanted:,} asked for; the others: {reasons}")
    for words in (*selection.unfilled, *about_targets(scored.targets_in_corpus)):
        reporter.say(words)
