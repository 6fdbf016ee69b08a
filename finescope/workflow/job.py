"""Everything that one curation run was asked to do, as plain values."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finescope.config import SaeConfig, TrainingConfig
from finescope.curation.scoring.presets import PRESETS, Preset
from finescope.curation.scoring.scorers import SCORERS
from finescope.curation.scoring.weighting import WEIGHTINGS
from finescope.curation.selection import SelectionConfig

POOLINGS = ("mean", "sqrt_mean", "max", "sum", "count")
"""How token codes become a document code."""


@dataclass
class Job:
    """One run of ``finescope curate``; ``sae``, ``training`` and ``selection`` are sections of their own.

    Raises:
        ValueError: an unknown name or a value out of range; the message names the field.
    """

    model: str = ""
    """Hugging Face id or local folder of the language model."""
    layer: str = ""
    """Module whose output is read, as torch names it; empty takes the last block."""
    targets: str = ""
    """File with the target rows."""
    corpus: list[str] = field(default_factory=list)
    """Files, folders or ``hf:`` names of the corpus."""
    out: str = "curated"
    """Folder for everything that is written."""
    text_column: str = "text"
    id_column: str = "id"
    label_column: str | None = None
    """Column with known labels, for evaluation only; never used for scoring."""
    target_labels: list[str] = field(default_factory=list)
    """Labels that count as the target domain; empty takes those of the target rows."""
    limit: int | None = None
    """Read only the first rows of the corpus."""
    sae_path: str | None = None
    """Folder of a trained SAE; None trains one on the corpus."""
    device: str = "cpu"
    dtype: str = "float32"
    """Element type the model runs in."""
    batch_tokens: int = 8192
    """Tokens per forward pass of the model."""
    max_length: int | None = None
    """Tokens per window; longer documents are read in several. None takes the model's limit."""
    stride: int | None = None
    """Tokens between the starts of two windows; None puts them end to end."""
    train_tokens: int = 2_000_000
    """Tokens of the corpus, at most, on which the SAE is trained."""
    preset: str = "default"
    pooling: str | None = None
    weights: str | None = None
    scorer: str | None = None
    top_m: int = 3
    """Targets that ``top_m_mean`` averages."""
    top_k_activations: int = 100
    """M: latents kept per document."""
    seed: int = 42
    draws: int = 50
    """Bootstrap resamples behind each interval."""
    report_rows: int = 100
    """Selected rows shown in the report."""
    sae: dict[str, Any] = field(default_factory=dict)
    """Fields of SaeConfig that differ from the plan."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of TrainingConfig that differ from the plan."""
    selection: dict[str, Any] = field(default_factory=dict)
    """Fields of SelectionConfig; without any limit, 100 rows are selected."""

    def __post_init__(self) -> None:
        if isinstance(self.corpus, str):
            self.corpus = [self.corpus]
        if isinstance(self.target_labels, str):
            self.target_labels = [self.target_labels]
        _choice("preset", self.preset, PRESETS)
        _choice("pooling", self.pooling, POOLINGS)
        _choice("weights", self.weights, WEIGHTINGS)
        _choice("scorer", self.scorer, SCORERS)
        for name in ("train_tokens", "batch_tokens", "top_m", "top_k_activations"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")
        for name in ("limit", "max_length", "stride"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, kind in (("sae", SaeConfig), ("training", TrainingConfig), ("selection", SelectionConfig)):
            section = getattr(self, name)
            if not isinstance(section, dict):
                raise ValueError(f"{name} must be a section of names and values, got {section!r}")
            _known_fields(section, [f.name for f in dataclasses.fields(kind)], f"{name}.")
            _checked(name, kind, section)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """Build a job from nested plain values.

        Raises:
            ValueError: an unknown name (the nearest is suggested), or a value out of range.
        """
        _known_fields(data, [f.name for f in dataclasses.fields(cls)], "")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    def recipe(self) -> Preset:
        """Return the preset with this job's own pooling, weighting and scorer put over it."""
        changes = {
            name: value
            for name, value in (("pooling", self.pooling), ("weights", self.weights), ("scorer", self.scorer))
            if value is not None and value != getattr(PRESETS[self.preset], name)
        }
        if not changes:
            return PRESETS[self.preset]
        summary = ", ".join(f"{name} {value}" for name, value in changes.items())
        return dataclasses.replace(
            PRESETS[self.preset], **changes, name=f"{self.preset}*", summary=f"{self.preset} with {summary}"
        )

    def selection_config(self) -> SelectionConfig:
        """Return the limits of the selection; 100 rows when none was given."""
        section = dict(self.selection)
        limits = ("k", "fraction", "min_score", "min_similarity", "token_budget")
        if all(section.get(name) is None for name in limits):
            section["k"] = 100
        if self.recipe().selection == "supplement":
            section.setdefault("strategy", "clusters")
            section.setdefault("min_similarity", 0.5)
        section.setdefault("seed", self.seed)
        return SelectionConfig(**section)

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.out)


def _choice(name: str, value: str | None, known: Any) -> None:
    if value is not None and value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _known_fields(data: dict[str, Any], known: list[str], prefix: str) -> None:
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"there is no setting {prefix}{name}; {hint}")


def _checked(name: str, kind: Any, section: dict[str, Any]) -> None:
    try:
        kind(**section)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
