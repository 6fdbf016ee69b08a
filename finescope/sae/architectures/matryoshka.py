"""Matryoshka BatchTopK (Bussmann et al., 2025): the first latents alone reconstruct too, in nested groups."""

from __future__ import annotations

from finescope.sae.architectures.batchtopk import BatchTopKAutoencoder


class MatryoshkaAutoencoder(BatchTopKAutoencoder):
    """As BatchTopK; the groups matter in training only."""

    architecture = "matryoshka"
