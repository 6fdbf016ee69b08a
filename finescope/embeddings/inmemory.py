"""Rows through model, SAE and pooler into memory: what a store would hold of them, to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.embeddings.pooler import Encoder, Pooler, ShardBuilder
from finescope.embeddings.words import CountedTexts, WordCounts
from finescope.embeddings.writer import Documents, shard_of_codes

if TYPE_CHECKING:
    from finescope.activations.tap import ActivationTap
    from finescope.corpus.row import Row


@dataclass(frozen=True)
class EmbeddedRows:
    """What is known of n rows that were embedded.

    Attributes:
        codes: [n,F], in the dtype that codes are stored in.
        words: the counts of their words.
        tokens: int64 [n]; 0 where there was no text.
        dense: [n,D], means of activations, as they are stored: float16 unless that can't hold one of them.
    """

    codes: SparseCodes
    words: CountedTexts
    tokens: NDArray[np.int64]
    dense: Tensor


class RowEmbedder:
    """Embeds rows that belong to no store. A row has the same code in any company."""

    def __init__(
        self,
        sae: Encoder,
        tap: ActivationTap,
        *,
        top_k: int,
        pooling: str,
        dtype: torch.dtype,
        max_norm: float | None = None,
    ) -> None:
        """Get ready.

        Args:
            sae: a trained autoencoder of the tap's width.
            tap: model and layer.
            top_k, pooling, dtype, max_norm: as ``embed_rows``.

        Raises:
            ValueError: an unknown pooling, or ``top_k`` below 1.
        """
        self._tap, self._dtype = tap, dtype
        self._pooler = Pooler(sae, pooling, top_k, max(tap.batch_tokens, 8192), max_norm)

    def __call__(self, rows: Sequence[Row]) -> EmbeddedRows:
        """Embed n rows.

        Raises:
            InputError: NaN activations, or a conversation that the chat template refuses; the row is named.
            StoreError: a code that the dtype can't hold.
        """
        built = ShardBuilder(self._pooler, self._tap.width, len(rows))
        for batch in self._tap.batches(rows, chunk_rows=max(1, len(rows))):
            built.add(batch)
        texts = [row.content for row in rows]
        documents = Documents(
            [row.id for row in rows], n_tokens=built.token_counts, texts=texts, dense=built.dense
        )
        made = shard_of_codes(built.codes(), documents, dtype=self._dtype, first=0).tensors
        return EmbeddedRows(
            SparseCodes(made["indptr"], made["indices"], made["values"], self._pooler.sae.num_latents),
            CountedTexts([WordCounts.from_tensors(made)], np.array([*map(len, texts)], np.int64)),
            np.array(built.token_counts, np.int64),
            made["dense"],
        )
