"""The three configurations of a run: SAE, training, curation. The names and defaults are the supplement's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

_Config = TypeVar("_Config", bound="_Dictable")


class _Dictable:
    """Conversion to and from plain dictionaries, shared by the three configurations."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain values, ready for JSON or YAML."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls: type[_Config], data: dict[str, Any], drop_extra_fields: bool = False) -> _Config:
        """Build a configuration from a dictionary.

        Args:
            data: field names and values; absent fields take their defaults.
            drop_extra_fields: ignore unknown names instead of refusing them (foreign checkpoints carry some).

        Raises:
            ValueError: an unknown name (unless dropped) or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        extra = sorted(set(data) - known)
        if extra and not drop_extra_fields:
            raise ValueError(
                f"{cls.__name__} has no field {', '.join(extra)}; it has {', '.join(sorted(known))}"
            )
        return cls(**{name: value for name, value in data.items() if name in known})


def _require(condition: bool, owner: object, message: str) -> None:
    if not condition:
        raise ValueError(f"{type(owner).__name__}: {message}")


def _whole(owner: object, *names: str) -> None:
    """Refuse what isn't a whole number: 2.5 latents would fail far from here, or be cut to 2."""
    for name in names:
        value = getattr(owner, name)
        fits = isinstance(value, int) and not isinstance(value, bool)
        _require(fits, owner, f"{name} must be a whole number, got {value!r}")


@dataclass
class SaeConfig(_Dictable):
    """Architecture and shape of a sparse autoencoder. Most names are those of sparsify's ``cfg.json``."""

    architecture: str = "topk"
    """How latents are chosen; ``finescope.sae.architectures`` has the names."""
    expansion_factor: int = 32
    """F as a multiple of D, used when ``num_latents`` is 0."""
    normalize_decoder: bool = True
    """Keep every decoder row at unit length."""
    num_latents: int = 0
    """F itself; 0 means D × ``expansion_factor``."""
    k: int = 32
    """K: latents kept per token."""
    multi_topk: bool = True
    """Add the MultiTopK term L(4K)/8 to the loss. Outputs always hold K latents."""

    def __post_init__(self) -> None:
        _whole(self, "expansion_factor", "num_latents", "k")
        _require(
            self.expansion_factor >= 1,
            self,
            f"expansion_factor must be at least 1, got {self.expansion_factor}",
        )
        _require(self.num_latents >= 0, self, f"num_latents must not be negative, got {self.num_latents}")
        _require(self.k >= 1, self, f"k must be at least 1, got {self.k}")

    def latents(self, d_in: int) -> int:
        """Return F for activations of width ``d_in``."""
        return self.num_latents or d_in * self.expansion_factor


@dataclass
class TrainingConfig(_Dictable):
    """How an SAE is trained. The first seven fields and their defaults are the supplement's."""

    batch_size: int = 32
    """Rows of a tensor per step: samples of [N,S,D] data (so this × S tokens), tokens of [B,D] data."""
    num_epochs: int = 10
    """Passes over the data."""
    learning_rate: float | None = 1e-4
    """Peak learning rate; None takes 2e-4 / sqrt(F / 2^14) (Gao et al., 2024, figure 3)."""
    l1_weight: float = 1e-3
    """Weight of the L1 term."""
    device: str = "cpu"
    """Device to train on, as torch names it; ``auto`` takes a CUDA device if there is one."""
    save_every: int = 5
    """Epochs between checkpoints; 0 keeps only the last."""
    log_every: int = 100
    """Steps between lines of the metrics log."""
    save_every_steps: int = 0
    """Steps between checkpoints inside an epoch, for data too large to wait for its end; 0 for none."""
    batch_tokens: int | None = None
    """Tokens per step. None: as ``batch_size`` says for tensors, 4096 for stores and iterables."""
    shuffle_tokens: int = 65_536
    """Tokens that the shuffle buffer of an iterable holds."""
    loss: str = "fvu"
    """Main term: ``fvu`` (fraction of variance unexplained) or ``normalized_mse`` (the supplement's)."""
    auxk_alpha: float = 1 / 32
    """Weight of AuxK, which revives dead latents; 0 turns it off."""
    auxk_k: int | None = None
    """Dead latents that AuxK lets take part per token; None for D/2 (Gao et al.). Fewer specialise sooner."""
    dead_feature_threshold: int | None = None
    """Tokens without firing that make a latent dead. None: 10 million, or one epoch if that is shorter."""
    lr_warmup_steps: int | None = None
    """Steps of linear warm-up. None: a twentieth of all steps, at most 1000."""
    autocast: str = "none"
    """``bf16`` reads decoder rows and does AuxK's products in bfloat16; the weights stay as they are."""
    seed: int = 42
    """Seed of initialisation and shuffling."""

    def __post_init__(self) -> None:
        _whole(
            self, "batch_size", "num_epochs", "save_every", "log_every", "save_every_steps", "shuffle_tokens"
        )
        _whole(self, "seed")
        _require(self.batch_size >= 1, self, f"batch_size must be at least 1, got {self.batch_size}")
        _require(self.num_epochs >= 1, self, f"num_epochs must be at least 1, got {self.num_epochs}")
        _require(
            self.learning_rate is None or self.learning_rate > 0,
            self,
            f"learning_rate must be positive or None, got {self.learning_rate}",
        )
        _require(self.l1_weight >= 0, self, f"l1_weight must not be negative, got {self.l1_weight}")
        _require(self.save_every >= 0, self, f"save_every must not be negative, got {self.save_every}")
        _require(self.log_every >= 1, self, f"log_every must be at least 1, got {self.log_every}")
        _require(
            self.save_every_steps >= 0,
            self,
            f"save_every_steps must not be negative, got {self.save_every_steps}",
        )
        _require(
            self.batch_tokens is None or self.batch_tokens >= 1,
            self,
            f"batch_tokens must be at least 1 or None, got {self.batch_tokens}",
        )
        _require(
            self.shuffle_tokens >= 1, self, f"shuffle_tokens must be at least 1, got {self.shuffle_tokens}"
        )
        _require(
            self.loss in ("fvu", "normalized_mse"),
            self,
            f"loss must be 'fvu' or 'normalized_mse', got {self.loss!r}",
        )
        _require(self.seed >= 0, self, f"seed must not be negative, got {self.seed}")
        _require(self.auxk_alpha >= 0, self, f"auxk_alpha must not be negative, got {self.auxk_alpha}")
        _require(
            self.auxk_k is None or self.auxk_k >= 1,
            self,
            f"auxk_k must be at least 1 or None, got {self.auxk_k}",
        )
        _require(
            self.dead_feature_threshold is None or self.dead_feature_threshold >= 1,
            self,
            f"dead_feature_threshold must be at least 1 or None, got {self.dead_feature_threshold}",
        )
        _require(
            self.lr_warmup_steps is None or self.lr_warmup_steps >= 0,
            self,
            f"lr_warmup_steps must not be negative, got {self.lr_warmup_steps}",
        )
        _require(
            self.autocast in ("none", "bf16"),
            self,
            f"autocast must be 'none' or 'bf16', got {self.autocast!r}",
        )


@dataclass
class CurationConfig(_Dictable):
    """How rows are scored and selected. The first five fields are the supplement's."""

    top_k_activations: int = 100
    """M: strongest latents kept per document."""
    top_k_selection: int = 100
    """Rows to select."""
    similarity_threshold: float = 0.5
    """Rows whose best cosine to a target is below this are not selected."""
    use_clustering: bool = True
    """Select inside the k-means clusters nearest to each target (supplement), instead of globally."""
    num_clusters: int = 5
    """Number of k-means clusters."""
    preset: str = "default"
    """Named recipe of pooling, weighting and scorer: ``default``, ``paper`` or ``supplement``."""
    seed: int = 42
    """Seed of clustering and resampling."""

    def __post_init__(self) -> None:
        _whole(self, "top_k_activations", "top_k_selection", "num_clusters", "seed")
        _require(
            self.top_k_activations >= 1,
            self,
            f"top_k_activations must be at least 1, got {self.top_k_activations}",
        )
        _require(
            self.top_k_selection >= 1, self, f"top_k_selection must be at least 1, got {self.top_k_selection}"
        )
        _require(
            -1.0 <= self.similarity_threshold <= 1.0,
            self,
            f"similarity_threshold is a cosine in [-1, 1], got {self.similarity_threshold}",
        )
        _require(self.num_clusters >= 1, self, f"num_clusters must be at least 1, got {self.num_clusters}")
