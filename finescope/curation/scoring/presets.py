"""Named recipes of pooling, weighting and scorer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A recipe of how documents become codes and how codes are compared.

    Attributes:
        name: what the user types.
        pooling: how token codes become a document code (``mean``, ``sqrt_mean``, ``max``, ``sum``,
            ``count``).
        weights: ``none`` or ``idf``.
        scorer: a name of ``scorers.TABLE`` or a sum of names (see ``sums.parse_scorer``).
        selection: ``rank`` (the best by score), or ``supplement`` (its clusters, or its union of per-target
            lists).
        summary: one sentence for help texts and reports.
        m: of the scorer ``top_m_mean``.
        coordinates: how many of a layer's the autoencoder is trained on (those of the largest Jacobian row
            norms, see ``finescope.activations.coordinates``); 0 for all.
        optional: whether scorers of a sum that need what isn't known of the rows are left out; otherwise they
            are refused.
    """

    name: str
    pooling: str
    weights: str
    scorer: str
    selection: str
    summary: str
    m: int = 3
    optional: bool = False
    coordinates: int = 0


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "default",
            "sqrt_mean",
            "idf",
            "ridge+tfidf+2*dense-whitened",
            "rank",
            "ridge regression on codes, TF-IDF words and, twice, whitened mean activations, summed",
            optional=True,
        ),
        Preset(
            "contrast",
            "sqrt_mean",
            "idf",
            "contrast",
            "rank",
            "square root of mean codes, weighted by idf; mean of the targets minus mean of the corpus",
        ),
        Preset(
            "paper",
            "mean",
            "none",
            "max",
            "rank",
            "mean codes, best cosine over targets, top M (arXiv 2505.00624)",
        ),
        Preset(
            "paper-v3",
            "mean",
            "none",
            "max",
            "rank",
            "as paper, the SAE on the 128 coordinates of the largest Jacobian row norms (version 3)",
            coordinates=128,
        ),
        Preset(
            "supplement",
            "mean",
            "none",
            "max",
            "supplement",
            "mean codes, cosine, selection inside each target's best k-means clusters or per-target lists",
        ),
    )
}
"""The presets by name."""


def get_preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}") from None
