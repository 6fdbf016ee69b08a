"""Curation: which rows of a corpus belong to the domain of the targets.

scoring     how near every row is to the targets, and why; a folder of its own
limits      top-k, fraction, thresholds, token budget, quotas: their fields, and what they say of rows alone
selected    what a selection is
best        the best rows by score alone, in one pass
quotas      the same for every label that has a share, if any has
lists       each target's nearest rows, as many as are needed
selection   rows where codes have a say: per-target lists, clusters, duplicates, diversity
sets        several target sets: whose row it is
shares      shares of a whole, as they are written and as they come to
enrichment  latents more frequent in some rows than in others
coverage    rows that add most to what is held of the targets
redundancy  rows too close to one that is taken already
clusters    k-means, and which rows lie near each target
exclusion   rows that are targets themselves
quality     similarity, diversity, Vendi score, coverage, length bias
metrics     precision, recall, average precision, lift against labels
orderstats  quantiles of very many numbers, found by counting
ranks       where some rows stand among all, found by counting, block by block: what metrics are made of
intervals   how much a number would move with other targets
ranking     where every method puts the rows that are to be found
compare     methods × metrics with such intervals
baselines   random, length, TF-IDF and dense activations by themselves
blocks      codes read in blocks or row by row, never all at once
pipeline    ``run_curation_pipeline``, the whole of it on activations

A new scorer is one class and one entry of ``TABLE`` in ``scoring/scorers.py``; a new recipe is one entry of
``PRESETS`` in ``scoring/presets.py``; a name in ``METHODS`` of ``compare.py`` puts either into the table of
methods. scipy and scikit-learn are imported by the functions that need them.
"""

from finescope.curation.baselines import DenseBaseline, TfidfBaseline, length_scores, random_scores
from finescope.curation.clusters import cluster_candidates, kmeans_labels
from finescope.curation.compare import METHODS, Comparison, MethodResult, average_results, compare_methods
from finescope.curation.exclusion import TargetRows, find_targets, is_target
from finescope.curation.intervals import (
    Interval,
    bootstrap_interval,
    jackknife,
    jackknife_interval,
    percentile_interval,
)
from finescope.curation.limits import REASONS, STRATEGIES, SelectionConfig
from finescope.curation.metrics import (
    METRICS_VERSION,
    average_precision,
    base_rate,
    domain_distribution,
    lift_at_k,
    precision_at_k,
    random_average_precision,
    recall_at_k,
    spearman,
)
from finescope.curation.pipeline import run_curation_pipeline
from finescope.curation.quality import (
    curation_quality,
    latent_coverage,
    length_bias,
    pairwise_diversity,
    target_similarity,
    vendi_score,
)
from finescope.curation.redundancy import greedy_filter
from finescope.curation.scoring.evidence import Evidence, Spaces
from finescope.curation.scoring.fitted import Contributions, Scoring, score_together
from finescope.curation.scoring.onepass import CorpusScorer, score_corpus
from finescope.curation.scoring.presets import PRESETS, Preset, get_preset
from finescope.curation.scoring.scorers import SCORERS
from finescope.curation.scoring.sums import parse_scorer, z_add
from finescope.curation.scoring.table import ScoreTable, rank_rows
from finescope.curation.scoring.weighting import WEIGHTINGS, document_frequency, idf_weights
from finescope.curation.selected import Selection
from finescope.curation.selection import select
from finescope.curation.sets import select_sets
from finescope.embeddings.pooler import repool
from finescope.storage.identity import text_hash

__all__ = [
    "METHODS",
    "METRICS_VERSION",
    "PRESETS",
    "REASONS",
    "SCORERS",
    "STRATEGIES",
    "WEIGHTINGS",
    "Comparison",
    "Contributions",
    "CorpusScorer",
    "DenseBaseline",
    "Evidence",
    "Interval",
    "MethodResult",
    "Preset",
    "ScoreTable",
    "Scoring",
    "Selection",
    "SelectionConfig",
    "Spaces",
    "TargetRows",
    "TfidfBaseline",
    "average_precision",
    "average_results",
    "base_rate",
    "bootstrap_interval",
    "cluster_candidates",
    "compare_methods",
    "curation_quality",
    "document_frequency",
    "domain_distribution",
    "find_targets",
    "get_preset",
    "greedy_filter",
    "idf_weights",
    "is_target",
    "jackknife",
    "jackknife_interval",
    "kmeans_labels",
    "latent_coverage",
    "length_bias",
    "length_scores",
    "lift_at_k",
    "pairwise_diversity",
    "parse_scorer",
    "percentile_interval",
    "precision_at_k",
    "random_average_precision",
    "random_scores",
    "rank_rows",
    "recall_at_k",
    "repool",
    "run_curation_pipeline",
    "score_corpus",
    "score_together",
    "select",
    "select_sets",
    "spearman",
    "target_similarity",
    "text_hash",
    "vendi_score",
    "z_add",
]
