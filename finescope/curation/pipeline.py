"""The whole curation in one call, from activations to selected rows: the supplement's entry point."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from finescope.codes import SparseCodes
from finescope.config import CurationConfig
from finescope.curation.blocks import FloatArray
from finescope.curation.limits import SelectionConfig
from finescope.curation.quality import curation_quality
from finescope.curation.scoring.base import SpaceScorer
from finescope.curation.scoring.evidence import Evidence, Spaces, fitting
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.presets import Preset, get_preset
from finescope.curation.scoring.table import ScoreTable
from finescope.curation.selected import Selection
from finescope.curation.selection import select
from finescope.errors import InputError
from finescope.html.notebook import ROWS, notebook
from finescope.progress import counted

if TYPE_CHECKING:
    from finescope.sae import Autoencoder

_LOG = logging.getLogger(__name__)


class CurationResults(dict[str, Any]):
    """What ``run_curation_pipeline`` returns: a dictionary, of which notebooks show the selected rows."""

    def _repr_html_(self) -> str:
        """Return the best of the selected rows, for notebooks."""
        rows = self["selected_indices"][:ROWS]
        metrics, dropped = self["metrics"], self["selection"].dropped()
        said = [f"preset: {self['preset']}"]
        if len(rows):
            said.append(f"average cosine to the nearest target: {metrics['avg_similarity_to_target']:.3f}")
        return notebook(
            f"{counted(len(self['selected_indices']), 'row')} selected of {len(self['similarities']):,} "
            f"for {counted(len(self['target_embeddings']), 'target')}",
            {
                "rank": range(1, len(rows) + 1),
                "row": rows,
                "score": self["scores"].score[rows],
                "its cosine to the nearest target": self["similarities"][rows],
            },
            said=[*said, f"not selected: {dropped}"] if dropped else said,
            caption="The best of them; rows are counted from 0",
            more=len(self["selected_indices"]) - len(rows),
        )


def run_curation_pipeline(
    target_activations: Any,
    large_dataset_activations: Any,
    sae: Autoencoder,
    cfg: CurationConfig | None = None,
    *,
    exclude: Any = None,
) -> CurationResults:
    """Embed targets and pool, score the pool, select rows, and measure the selection.

    With the supplement's preset this is the supplement's algorithm with its defects repaired: a document is a
    sparse vector over latents, similarity is the cosine of two such vectors, rows below
    ``similarity_threshold`` are left out, and exactly ``top_k_selection`` rows come back as long as that many
    reach the threshold: the union of what the targets ask for is trimmed to the best and, when it is too
    small, filled with the next best. The threshold always refers to the best plain (unweighted) cosine to a
    target, whatever the preset weighs. Of a preset that looks at words and mean activations too, what looks
    at codes is taken: there is nothing else here.

    Args:
        target_activations: [T,S,D], or whatever else ``finescope.embeddings.extract_embeddings`` takes.
        large_dataset_activations: the same for the N rows of the pool.
        sae: a trained autoencoder of width D.
        cfg: sizes, threshold, clustering, preset; None takes the defaults. ``use_clustering`` acts with every
            preset but ``paper``, whose selection is fixed to the best by score.
        exclude: bool [N], pool rows that are targets and must not be selected.

    Returns:
        A dictionary: ``selected_indices`` int64 [R], best first; ``selected_similarities`` float64 [R], their
            best plain cosine to a target, and ``similarities`` float64 [N], that of every pool row;
            ``metrics``: avg_/min_/max_similarity_to_target, diversity_of_selected, num_selected, and ours;
            ``target_embeddings`` and ``large_embeddings``: SparseCodes of T and N rows; ``scores``: the
            ScoreTable that ranked the rows; ``selection``: the Selection, with a reason for every row;
            ``dropped``: counts by reason; ``preset`` and ``config``: what was run.

    Raises:
        InputError: no targets, an empty pool, or broken activations.
        ValueError: the widths of activations and SAE differ, or an unknown preset.
    """
    from finescope.embeddings import extract_embeddings

    cfg = CurationConfig() if cfg is None else cfg
    preset = get_preset(cfg.preset)
    for name, activations in (("target", target_activations), ("pool", large_dataset_activations)):
        if hasattr(activations, "__len__") and len(activations) == 0:
            raise InputError(f"the {name} activations hold no samples")
    targets = extract_embeddings(sae, target_activations, cfg.top_k_activations, pooling=preset.pooling)
    pool = extract_embeddings(sae, large_dataset_activations, cfg.top_k_activations, pooling=preset.pooling)
    scorer = CorpusScorer(pool, weights=preset.weights)
    chosen, _ = fitting(preset, Spaces(Evidence(pool)), Evidence(targets))
    assert isinstance(chosen, SpaceScorer)
    scores = scorer.score(targets, chosen)
    similarity = plain_similarity(scorer, scores, targets, pool)
    selection = _select(scores, similarity, cfg, preset, scorer, targets, exclude)
    if len(selection) < min(cfg.top_k_selection, len(pool)):
        _warn(selection, cfg)
    metrics = curation_quality(
        targets,
        pool,
        selection.indices,
        score=scores.score,
        coverage_threshold=cfg.similarity_threshold,
        seed=cfg.seed,
    )
    found = {
        "selected_indices": selection.indices,
        "selected_similarities": similarity[selection.indices],
        "similarities": similarity,
        "metrics": metrics,
        "target_embeddings": targets,
        "large_embeddings": pool,
        "scores": scores,
        "selection": selection,
        "dropped": {name: count for name, count in selection.counts.items() if name != "selected"},
        "preset": preset.name,
        "config": cfg.to_dict(),
    }
    return CurationResults(found)


def _warn(selection: Selection, cfg: CurationConfig) -> None:
    """Say that fewer rows were selected than were asked for, and why."""
    others = {name: count for name, count in selection.counts.items() if count and name != "selected"}
    _LOG.warning(
        "%d rows selected instead of %d: %s. Lower similarity_threshold (%g) for more.",
        len(selection),
        cfg.top_k_selection,
        ", ".join(f"{count} {name}" for name, count in others.items()),
        cfg.similarity_threshold,
    )


def plain_similarity(
    scorer: CorpusScorer, scores: ScoreTable, targets: SparseCodes, pool: SparseCodes
) -> FloatArray:
    """Return every row's best cosine to a target in the space of the codes as they are, float64 [N]."""
    if scorer.weights is None:
        return scores.nearest_similarity
    return CorpusScorer(pool).score(targets, "max").nearest_similarity


def _select(
    scores: ScoreTable,
    similarity: FloatArray,
    cfg: CurationConfig,
    preset: Preset,
    scorer: CorpusScorer,
    targets: SparseCodes,
    exclude: Any,
) -> Selection:
    if preset.selection == "rank":
        strategy = "clusters" if cfg.use_clustering and not preset.name.startswith("paper") else "rank"
    else:
        strategy = "clusters" if cfg.use_clustering else "per_target"
    limits = SelectionConfig(
        k=cfg.top_k_selection,
        min_similarity=cfg.similarity_threshold,
        strategy=strategy,
        num_clusters=cfg.num_clusters,
        seed=cfg.seed,
    )
    gated = dataclasses.replace(scores, nearest_similarity=similarity)
    return select(gated, limits, targets=targets, scorer=scorer, exclude=exclude)
