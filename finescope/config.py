"""The three configurations of a run: SAE, training, curation. The names and defaults are the supplement's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from finescope.fields import (
    Allowed,
    Configuration,
    Cosine,
    Count,
    Device,
    Rate,
    Seed,
    Share,
    Size,
    Text,
    Weight,
    one_of,
)


def rises(numbers: list[int]) -> bool:
    """Return whether numbers are positive and each is larger than the one before."""
    return all(low < high for low, high in zip([0, *numbers], numbers, strict=False))


Loss = Annotated[str, one_of(("fvu", "normalized_mse"))]
Widths = Annotated[list[int], Allowed(rises, "ascending whole numbers of at least 1")]
Autocast = Annotated[str, one_of(("none", "bf16"))]


@dataclass
class SaeConfig(Configuration):
    """Architecture and shape of a sparse autoencoder. Most names are those of sparsify's ``cfg.json``."""

    expansion_factor: Size = 32
    """F as a multiple of D, used when ``num_latents`` is 0."""
    normalize_decoder: bool = True
    """Keep every decoder row at unit length."""
    num_latents: Count = 0
    """F itself; 0 means D × ``expansion_factor``."""
    k: Size = 32
    """K: latents kept per token."""
    multi_topk: bool = True
    """Add the MultiTopK term L(4K)/8 to the loss. Outputs always hold K latents."""
    architecture: Text = "topk"
    """How latents are chosen; ``finescope.sae.architectures`` has the names."""
    matryoshka_widths: Widths = field(default_factory=list)
    """Of a Matryoshka: numbers of latents that reconstruct alone; the last is F. Empty: F/16 … F."""
    matryoshka_loss: Annotated[str, one_of(("mean", "sum"))] = "mean"
    """Whether a Matryoshka's main term is the mean of its reconstructions' errors or their sum."""
    sparsity: Annotated[str, one_of(("target", "step", "tanh"))] = "target"
    """What a JumpReLU pays for: ``target``, (L0/K − 1)²; ``step``, L0; ``tanh``, a smooth count."""
    tanh_scale: Rate = 4.0
    """c in a JumpReLU's Σ tanh(c · activation)."""
    bandwidth: Rate | None = None
    """Width of the window in which a JumpReLU's thresholds get gradients. None: as high as they begin."""
    threshold_rate: Share = 0.01
    """Share of each step in a BatchTopK's running threshold."""

    def latents(self, d_in: int) -> int:
        """Return F for activations of width ``d_in``."""
        return self.num_latents or d_in * self.expansion_factor


@dataclass
class SaeFacts(Configuration):
    """What the files of some autoencoders leave out; a reader asks for what it needs."""

    k: Size | None = None
    """Latents per token."""
    norm_scaling_factor: Rate | None = None
    """What activations were multiplied by before training: √D over their mean norm."""
    threshold: float | None = None
    """Pre-activation from which a latent of a BatchTopK fires."""
    center_writing_weights: bool | None = None
    """Whether the SAE saw a model whose residual stream has no mean over D."""
    normalize_activations: Text | None = None
    """How SAELens normalises activations, over what the configuration says."""
    embedding: bool | None = None
    """Whether an SAE of Gemma Scope is of token embeddings."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that are given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class TrainingConfig(Configuration):
    """How an SAE is trained. The first seven fields and their defaults are the supplement's."""

    batch_size: Size = 32
    """Rows of a tensor per step: samples of [N,S,D] data (so this × S tokens), tokens of [B,D] data."""
    num_epochs: Size = 10
    """Passes over the data."""
    learning_rate: Rate | None = 1e-4
    """Peak learning rate. None: 2e-4 / sqrt(F / 2^14) (Gao et al., 2024, figure 3)."""
    l1_weight: Weight = 1e-3
    """Weight of the L1 term."""
    device: Device = "cpu"
    """Device to train on, as torch names it; ``auto`` takes a CUDA device if there is one."""
    save_every: Count = 5
    """Epochs between checkpoints; 0 keeps only the last."""
    log_every: Size = 100
    """Steps between lines of the metrics log."""
    save_every_steps: Count = 0
    """Steps between checkpoints inside an epoch, for data too large to wait for its end; 0 for none."""
    batch_tokens: Size | None = None
    """Tokens per step. None: as ``batch_size`` says for tensors, 4096 for stores and iterables."""
    shuffle_tokens: Size = 65_536
    """Tokens that the shuffle buffer of an iterable holds."""
    sparsity_weight: Weight = 1.0
    """Weight of the architecture's own term: JumpReLU's sparsity, the gates' reconstruction of Gated."""
    loss: Loss = "fvu"
    """Main term: ``fvu`` (fraction of variance unexplained) or ``normalized_mse`` (the supplement's)."""
    auxk_alpha: Weight = 1 / 32
    """Weight of AuxK, which revives dead latents; 0 turns it off."""
    auxk_k: Size | None = None
    """Dead latents that AuxK lets take part per token; fewer specialise sooner. None: D/2 (Gao et al.)."""
    dead_feature_threshold: Size | None = None
    """Tokens without firing that make a latent dead. None: 10 million, or one epoch if that is shorter."""
    lr_warmup_steps: Count | None = None
    """Steps of linear warm-up. None: a twentieth of all steps, at most 1000."""
    autocast: Autocast = "none"
    """``bf16`` reads decoder rows and does AuxK's products in bfloat16; the weights stay as they are."""
    seed: Seed = 42
    """Seed of initialisation and shuffling."""


@dataclass
class CurationConfig(Configuration):
    """How rows are scored and selected. The first five fields are the supplement's."""

    top_k_activations: Size = 100
    """M: strongest latents kept per document."""
    top_k_selection: Size = 100
    """Rows to select."""
    similarity_threshold: Cosine = 0.5
    """Rows whose best cosine to a target is below this are not selected."""
    use_clustering: bool = True
    """Select inside the k-means clusters nearest to each target (supplement), instead of globally."""
    num_clusters: Size = 5
    """Number of k-means clusters."""
    preset: Text = "default"
    """Named recipe of pooling, weighting and scorer: ``default``, ``contrast``, ``paper`` and others; see
    ``finescope.curation.PRESETS``."""
    seed: Seed = 42
    """Seed of clustering and resampling."""
