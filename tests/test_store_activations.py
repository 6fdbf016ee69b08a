"""Activations on disk must come back exactly, in order or shuffled without loss, in bounded memory.

Fails if: a token is lost or doubled by shuffling or sampling; the order depends on anything but seed and
epoch; a sample favours the head of the corpus; a value too large for the dtype is stored as infinity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finescope.activations import (
    ActivationStore,
    ActivationStoreWriter,
    ActivationTap,
    DocumentActivations,
    store,
    store_activations,
)
from finescope.corpus import Row, open_corpus
from finescope.errors import InputError, StoreError
from support.tiny_models import make_model, make_rows, make_tokenizer


def _document(index: int, tokens: int, start: int) -> DocumentActivations:
    """A document whose token t of the whole store holds the value t in every place."""
    values = torch.arange(start, start + tokens, dtype=torch.float32)[:, None].expand(tokens, 4)
    return DocumentActivations(index, f"d{index}", torch.arange(start, start + tokens), values, f"t:{index}")


def _write(folder: Path, lengths: list[int], **options: object) -> ActivationStore:
    with ActivationStoreWriter(folder, 4, dtype=torch.float32, **options) as writer:  # type: ignore[arg-type]
        start = 0
        for index, length in enumerate(lengths):
            writer.add(_document(index, length, start))
            start += length
        writer.finish()
    return ActivationStore(folder)


LENGTHS = [3, 0, 700, 1, 40, 256, 0, 11, 513, 2]


@pytest.mark.parametrize("shard_tokens", [1, 300, 10_000])
def test_documents_come_back_exactly(tmp_path: Path, shard_tokens: int) -> None:
    found = _write(tmp_path, LENGTHS, shard_tokens=shard_tokens)
    assert (found.num_documents, found.num_tokens, found.width) == (len(LENGTHS), sum(LENGTHS), 4)
    start = 0
    for index, document in enumerate(found.documents()):
        wanted = _document(index, LENGTHS[index], start)
        assert (document.id, document.index, document.place) == (wanted.id, index, wanted.place)
        assert torch.equal(document.activations, wanted.activations)
        assert torch.equal(document.token_ids, wanted.token_ids)
        start += LENGTHS[index]
    assert start == found.num_tokens
    assert found.ids() == [f"d{index}" for index in range(len(LENGTHS))]


@pytest.mark.parametrize("buffer_tokens", [1, 500, 1 << 20])
def test_shuffled_batches_hold_every_token_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_tokens: int
) -> None:
    monkeypatch.setattr(store, "_BUFFER_BYTES", buffer_tokens * 16)
    found = _write(tmp_path, LENGTHS * 3, shard_tokens=400)
    batches = list(found.batches(64, seed=5, epoch=1))
    assert [batch.shape[0] for batch in batches[:-1]] == [64] * (len(batches) - 1)
    seen = torch.cat(batches)[:, 0].long()
    assert torch.equal(seen.sort().values, torch.arange(found.num_tokens))
    assert not torch.equal(seen, seen.sort().values)
    again = torch.cat(list(found.batches(64, seed=5, epoch=1)))[:, 0].long()
    assert torch.equal(seen, again), "seed and epoch decide the order"
    for seed, epoch in ((5, 2), (6, 1)):
        assert not torch.equal(seen, torch.cat(list(found.batches(64, seed=seed, epoch=epoch)))[:, 0].long())
    limited = torch.cat(list(found.batches(64, seed=5, epoch=1, max_tokens=100)))[:, 0].long()
    assert torch.equal(limited, seen[:100])


def test_shuffling_mixes_documents_within_a_batch(tmp_path: Path) -> None:
    found = _write(tmp_path, [1000] * 20, shard_tokens=4000)
    batch = next(found.batches(200, seed=0))[:, 0]
    assert len(set((batch // 1000).tolist())) > 10


def test_the_buffer_bounds_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BUFFER_BYTES", 1000 * 16)
    found = _write(tmp_path, [500] * 40, shard_tokens=5000)
    sizes = [buffer.shape[0] for buffer in found._buffers(np.random.default_rng(0), 1000)]
    assert max(sizes) < 1000 + 256
    assert sum(sizes) == 20_000


def test_samples_are_drawn_from_everywhere_without_replacement(tmp_path: Path) -> None:
    found = _write(tmp_path, [50] * 40, shard_tokens=300)
    sample = found.sample(400, seed=1)[:, 0]
    assert sample.shape == (400,)
    assert len(set(sample.tolist())) == 400
    assert 850 < float(sample.mean()) < 1150
    assert torch.equal(sample, found.sample(400, seed=1)[:, 0])
    assert found.sample(10_000).shape == (2000, 4)


def test_values_that_do_not_fit_are_refused_not_stored_as_infinity(tmp_path: Path) -> None:
    big = DocumentActivations(0, "big", torch.zeros(1, dtype=torch.int64), torch.full((1, 4), 1e5))
    with (
        ActivationStoreWriter(tmp_path / "half", 4) as writer,
        pytest.raises(StoreError, match=r"'big'.*bfloat16"),
    ):
        writer.add(big)
    with ActivationStoreWriter(tmp_path / "wide", 4, dtype=torch.bfloat16) as writer:
        writer.add(big)
        writer.finish()
    assert float(next(ActivationStore(tmp_path / "wide").documents()).activations[0, 0]) == pytest.approx(
        1e5, rel=0.01
    )
    with (
        ActivationStoreWriter(tmp_path / "other", 8) as writer,
        pytest.raises(ValueError, match=r"not \[T,8\]"),
    ):
        writer.add(big)


def _tap() -> ActivationTap:
    return ActivationTap(make_model("llama"), "layers.1", tokenizer=make_tokenizer(), batch_tokens=512)


def test_a_corpus_is_stored_whole_and_rows_without_text_are_left_out(tmp_path: Path) -> None:
    rows = [*make_rows(6), Row("blank", ""), *make_rows(3, seed=1)]
    rows = [Row(f"r{number}", row.text) for number, row in enumerate(rows)]
    corpus = open_corpus([{"id": row.id, "text": row.text} for row in rows])
    found = store_activations(_tap(), corpus, tmp_path, dtype=torch.float32, shard_tokens=80)
    assert found.ids() == [row.id for row in rows if row.text]
    for document in found.documents():
        wanted = next(_tap().run([rows[document.index]]))
        torch.testing.assert_close(document.activations, wanted.activations)


def test_a_sample_of_documents_keeps_to_the_budget_and_comes_from_the_whole_corpus(tmp_path: Path) -> None:
    rows = make_rows(120, longest=9)
    total = sum(len(row.content.split()) for row in rows)
    found = store_activations(_tap(), rows, tmp_path / "a", max_tokens=total // 4, seed=3)
    assert total // 4 - 9 <= found.num_tokens <= total // 4
    positions = [document.index for document in found.documents()]
    assert positions == sorted(positions)
    assert positions[0] < 30
    assert positions[-1] >= 90
    other = store_activations(_tap(), rows, tmp_path / "b", max_tokens=total // 4, seed=4)
    assert other.ids() != found.ids()
    whole = store_activations(_tap(), rows, tmp_path / "c", max_tokens=10**9)
    assert whole.num_tokens == total
    one = store_activations(_tap(), rows, tmp_path / "d", max_tokens=1)
    assert one.num_documents >= 1, "one document at least"


def test_nothing_to_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row of the corpus gives a token"):
        store_activations(_tap(), [Row("a", "<s>")], tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(shards=None),
        lambda m: m.update(shards={}),
        lambda m: m["shards"][0].pop("bytes"),
        lambda m: m["shards"][0].update(rows="two"),
        lambda m: m["facts"].pop("width"),
        lambda m: m["facts"].update(dtype="float1"),
        lambda m: m.update(facts=[]),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, change: Any) -> None:
    with ActivationStoreWriter(tmp_path, 4) as writer:
        writer.add(DocumentActivations(0, "a", torch.arange(3), torch.randn(3, 4)))
        writer.finish()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="is damaged"):
        ActivationStore(tmp_path)


def test_token_ids_must_go_with_the_activations(tmp_path: Path) -> None:
    with (
        ActivationStoreWriter(tmp_path, 4) as writer,
        pytest.raises(ValueError, match=r"'a' has \[5\] token ids"),
    ):
        writer.add(DocumentActivations(0, "a", torch.arange(5), torch.randn(3, 4)))


def test_a_waiting_document_holds_nothing_of_the_batch_it_came_from(tmp_path: Path) -> None:
    batch, ids = torch.randn(1000, 4).half(), torch.arange(1000)
    with ActivationStoreWriter(tmp_path, 4, shard_tokens=10_000) as writer:
        for index in range(10):
            span = slice(3 * index, 3 * index + 3)
            writer.add(DocumentActivations(index, f"d{index}", ids[span], batch[span]))
        held = [part for document in writer._documents for part in (document.activations, document.token_ids)]
        assert sum(part.untyped_storage().nbytes() for part in held) == 10 * 3 * 8
