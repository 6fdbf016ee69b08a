"""Counts of words that stand beside the codes give what the texts give, and are read shard by shard.

Fails if: a vocabulary, a frequency, a row or a score differs from those of the texts in memory; few rows make
all shards be read; damage goes unnoticed; a store that was begun without words is taken to hold them all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finescope.codes import SparseCodes
from finescope.curation import Evidence, Scoring
from finescope.curation.blocks import iter_blocks
from finescope.curation.scoring.words import Words, count_words
from finescope.embeddings import CodeStore, CodeStoreWriter
from finescope.embeddings import store as stores
from finescope.errors import StoreError
from finescope.storage.manifest import ShardEntry

LATENTS = 12
SIZES = (50, 1, 60, 0, 30)


def made_up(rows: int, seed: int) -> SparseCodes:
    dense = torch.rand(rows, LATENTS, generator=torch.Generator().manual_seed(seed))
    return SparseCodes.from_dense(dense * (dense > 0.6))


def texts(rows: int, seed: int) -> list[str]:
    drawn = np.random.default_rng(seed)
    found = [" ".join(f"w{drawn.zipf(1.4) % 400}" for _ in range(drawn.integers(0, 30))) for _ in range(rows)]
    return [*found[:-1], "Ünïcode DİYARBAKIR \ud800 the " + "w0 " * (3000 if seed == 2 else 3)][:rows]


def stored(folder: Path, sizes: tuple[int, ...] = SIZES) -> tuple[CodeStore, list[str], SparseCodes]:
    every: list[str] = []
    codes = []
    with CodeStoreWriter(folder, LATENTS, dtype=torch.float32) as writer:
        for number, rows in enumerate(sizes):
            part, held = made_up(rows, number), texts(rows, number)
            writer.write(part, [f"{number}-{row}" for row in range(rows)], texts=held)
            every, codes = every + held, [*codes, part]
        writer.finish()
    return CodeStore(folder), every, SparseCodes.cat(codes)


def words_of(store: CodeStore) -> Words:
    kept = store.words()
    assert kept is not None
    return Words(kept)


def test_words_of_a_store_are_those_of_its_texts(tmp_path: Path) -> None:
    store, every, _ = stored(tmp_path)
    found, expected = words_of(store), count_words(every)
    assert found.vocabulary == expected.vocabulary
    assert found.document_frequency.tolist() == expected.document_frequency.tolist()
    assert found.lengths.tolist() == expected.lengths.tolist() == [len(text) for text in every]
    for (_, one), (_, two) in zip(iter_blocks(found, 64), iter_blocks(expected, 64), strict=True):
        assert one == two
        assert one.indices.dtype == two.indices.dtype
    rows = np.array([140, 3, 50, 3, 111])
    assert found.take(rows) == expected.take(rows) == SparseCodes.cat(list(expected.iter_shards()))[rows]
    assert len(found.take(np.zeros(0, np.int64))) == 0


def test_scores_from_a_store_have_the_bytes_of_those_from_texts(tmp_path: Path) -> None:
    store, every, codes = stored(tmp_path / "corpus")
    seeds, wanted, of_seeds = stored(tmp_path / "targets", (5, 3))
    recipe = "contrast+tfidf+tfidf-max"
    kept = Scoring(Evidence(store, texts=store.words()), Evidence(seeds, texts=seeds.words()), scorer=recipe)
    plain = Scoring(Evidence(codes, texts=every), Evidence(of_seeds, texts=wanted), scorer=recipe)
    assert kept.score().score.tobytes() == plain.score().score.tobytes()


def test_few_rows_read_the_shards_that_hold_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(stored(tmp_path)[0])
    opened: list[str] = []
    reading = stores.map_shard

    def counted(folder: Any, entry: ShardEntry, names: tuple[str, ...]) -> Any:
        opened.append(entry.file)
        return reading(folder, entry, names)

    monkeypatch.setattr(stores, "map_shard", counted)
    words.take(np.array([130, 2, 131]))
    assert opened == ["shard-00000.safetensors", "shard-00004.safetensors"]


def test_words_that_contradict_the_manifest_are_named(tmp_path: Path) -> None:
    store, _, _ = stored(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][2]["words"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"shard-00002\.safetensors is corrupt: its words contradict"):
        words_of(CodeStore(tmp_path))
    del manifest["shards"][2]["words"]
    path.write_text(json.dumps(manifest))
    assert CodeStore(tmp_path).words() is None, "one shard was written before words were kept"
    assert store.words() is not None
