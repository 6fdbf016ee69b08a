"""Tokens' codes to documents' codes, and their store.

tokens    codes of tokens, K latents each or as many as fire
pooler    token codes of documents of any length to one code each
extract   activations that are there to codes in memory
store     document codes on disk: CSR shards, ids and metadata
rows      a corpus through model, SAE and pooler into a store
"""

from finescope.embeddings.extract import extract_embeddings
from finescope.embeddings.pooler import POOLINGS
from finescope.embeddings.rows import embed_rows
from finescope.embeddings.store import CodeStore, CodeStoreWriter

__all__ = ["POOLINGS", "CodeStore", "CodeStoreWriter", "embed_rows", "extract_embeddings"]
