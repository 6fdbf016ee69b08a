"""What could be imported of version 0.1.0 can still be imported, from where it was.

Fails if: a public name of a package is gone or has another home only; a module that README or the benchmarks
named can't be imported.
"""

from __future__ import annotations

import importlib

import pytest

NAMES = {
    "finescope": """
        CurationConfig FineScopeError Index InputError SaeConfig SparseAutoencoder SparseCodes
        StoreError TrainingConfig create_activation_dataset extract_embeddings run_curation_pipeline
        train_sae
    """,
    "finescope.activations": """
        ActivationStore ActivationStoreWriter ActivationTap DocumentActivations load_model
        load_tokenizer resolve_hookpoint store_activations
    """,
    "finescope.corpus": """
        Corpus CorpusStats Row open_corpus write_rows
    """,
    "finescope.curation": """
        CorpusScorer DenseBaseline Interval METRICS_VERSION MethodResult PRESETS Preset REASONS
        SCORERS STRATEGIES ScoreTable Selection SelectionConfig TfidfBaseline WEIGHTINGS
        average_precision average_results base_rate bootstrap_interval cluster_candidates
        compare_methods curation_quality document_frequency domain_distribution get_preset
        greedy_filter idf_weights is_target kmeans_labels latent_coverage length_bias length_scores
        lift_at_k pairwise_diversity percentile_interval precision_at_k random_average_precision
        random_scores rank_rows recall_at_k repool run_curation_pipeline score_corpus select
        spearman target_similarity text_hash vendi_score z_add
    """,
    "finescope.ops": """
        PackedCodes PackedMatrix cosine_topk pair_scores pool_codes sparse_cosine_topk sparse_decode
        sparse_pair_scores topk_encode
    """,
    "finescope.sae": """
        EncoderOutput ForwardOutput SparseAutoencoder extract_embeddings geometric_median train_sae
    """,
}
"""The public names of 0.1.0, by package."""
MODULES = "cli codes config data_generator diagnostics embeddings errors optim search workflow.job"


@pytest.mark.parametrize("module", NAMES)
def test_names_of_the_first_version_are_there(module: str) -> None:
    package = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(package, name)] == []


@pytest.mark.parametrize("module", MODULES.split())
def test_modules_of_the_first_version_are_there(module: str) -> None:
    importlib.import_module(f"finescope.{module}")


def test_index_and_embeddings_come_from_where_they_came() -> None:
    from finescope.embeddings import embed_rows, extract_embeddings
    from finescope.search import Index

    assert all(map(callable, (embed_rows, extract_embeddings, Index)))
