"""Tokens' codes to documents' codes, and their store.

tokens    codes of tokens, K latents each or as many as fire
pooler    token codes of documents of any length to one code each
extract   activations that are there to codes in memory
words     texts as counts of words, kept beside the codes
store     document codes on disk: CSR shards, ids and metadata
writer    writing such a store
alone     a row that ends who reads it, found by reading row by row
embedder  what makes a shard of codes of a shard of rows, in any process
rows      a corpus through model, SAE and pooler into a store
inmemory  rows that belong to no store, to what one would hold of them

Names are imported on first use: who pools codes doesn't pay for the model's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finescope.lazy import on_first_use

if TYPE_CHECKING:
    from finescope.embeddings.extract import extract_embeddings as extract_embeddings
    from finescope.embeddings.pooler import POOLINGS as POOLINGS
    from finescope.embeddings.rows import embed_rows as embed_rows
    from finescope.embeddings.store import CodeStore as CodeStore
    from finescope.embeddings.writer import CodeStoreWriter as CodeStoreWriter

_HOME = {
    "POOLINGS": "finescope.embeddings.pooler",
    "CodeStore": "finescope.embeddings.store",
    "CodeStoreWriter": "finescope.embeddings.writer",
    "embed_rows": "finescope.embeddings.rows",
    "extract_embeddings": "finescope.embeddings.extract",
}

__all__ = sorted(_HOME)

__getattr__ = on_first_use(__name__, _HOME)


def __dir__() -> list[str]:
    return __all__
