"""Document codes must be the pooled token codes of that document alone, whatever form activations come in.

Checked against a float64 oracle that shares no code with the package: top-k per token by sorting, pooling by
loops, the M strongest by sorting. Also: streamed to disk or in memory, the codes are the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finescope.activations import ActivationStoreWriter, ActivationTap, DocumentActivations
from finescope.activations.store import ActivationStore
from finescope.codes import SparseCodes
from finescope.config import SaeConfig
from finescope.corpus import Row, open_corpus
from finescope.embeddings import POOLINGS, CodeStore, CodeStoreWriter, embed_rows, extract_embeddings, pooler
from finescope.errors import InputError, StoreError
from finescope.sae import SparseAutoencoder
from support.tiny_models import WIDTH, make_model, make_rows, make_tokenizer

D, F, K = 12, 48, 5


@pytest.fixture
def sae() -> SparseAutoencoder:
    made = SparseAutoencoder(D, SaeConfig(num_latents=F, k=K), seed=3)
    with torch.no_grad():
        made.b_dec.normal_()
        made.encoder.bias.normal_(std=0.1)
    return made


def _oracle(sae: SparseAutoencoder, document: torch.Tensor, pooling: str, keep: int) -> dict[int, float]:
    weight, bias = sae.encoder.weight.detach().numpy(), sae.encoder.bias.detach().numpy()
    shift = sae.b_dec.detach()
    held: dict[int, list[float]] = {}
    for token in document:
        x = (token - shift).numpy().astype(np.float64)
        scores = [(float(np.dot(weight[f].astype(np.float64), x)) + float(bias[f]), f) for f in range(F)]
        for value, latent in sorted(scores, key=lambda pair: (-pair[0], pair[1]))[:K]:
            if value > 0:
                held.setdefault(latent, []).append(value)
    tokens = len(document)
    pooled = {}
    for latent, values in held.items():
        pooled[latent] = {
            "mean": sum(values) / tokens,
            "max": max(values),
            "sum": sum(values),
            "sqrt_mean": (sum(values) / tokens) ** 0.5,
            "count": float(len(values)),
        }[pooling]
    strongest = sorted(pooled, key=lambda latent: (-np.float32(pooled[latent]), latent))[:keep]
    return {latent: pooled[latent] for latent in sorted(strongest)}


def _row(codes: SparseCodes, number: int) -> dict[int, float]:
    row = codes[number]
    return dict(zip(row.indices.tolist(), row.values.tolist(), strict=True))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_codes_equal_the_oracle(sae: SparseAutoencoder, pooling: str) -> None:
    documents = [torch.randn(tokens, D) * 2 for tokens in (1, 4, 9, 3)]
    codes = extract_embeddings(sae, documents, 7, pooling=pooling)
    assert codes.shape == (4, F)
    assert codes.values.dtype == torch.float32
    for number, document in enumerate(documents):
        wanted = _oracle(sae, document, pooling, 7)
        found = _row(codes, number)
        assert list(found) == list(wanted)
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-5)


def test_every_form_of_activations_gives_the_same_codes(sae: SparseAutoencoder, tmp_path: Path) -> None:
    cube = torch.randn(6, 5, D)
    wanted = extract_embeddings(sae, cube)
    assert extract_embeddings(sae, cube.numpy()) == wanted
    assert extract_embeddings(sae, list(cube)) == wanted
    assert extract_embeddings(sae, (document for document in cube)) == wanted
    flat = cube.reshape(-1, D)
    assert extract_embeddings(sae, flat, offsets=torch.arange(0, 31, 5)) == wanted
    with ActivationStoreWriter(tmp_path, D, dtype=torch.float32, shard_tokens=12) as writer:
        for number, document in enumerate(cube):
            writer.add(DocumentActivations(number, f"d{number}", torch.arange(5), document))
        writer.finish()
    assert extract_embeddings(sae, ActivationStore(tmp_path)) == wanted
    for batch_tokens in (1, 7, 10_000):
        assert extract_embeddings(sae, cube, batch_tokens=batch_tokens) == wanted
    single = extract_embeddings(sae, flat)
    assert single == extract_embeddings(sae, flat[:, None])


@pytest.mark.parametrize("tokens", [0, 1, 7, 1000])
def test_sums_of_runs_are_added_up_token_by_token(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    rows = torch.randn(200, 5) * torch.logspace(-8, 8, 200)[:, None]
    offsets = [0, 0, 3, 3, 150, 199, 200, 200]
    expected = torch.zeros(7, 5, dtype=torch.float64)
    for run, low in enumerate(offsets[:-1]):
        for row in rows[low : offsets[run + 1]]:
            expected[run] += row
    monkeypatch.setattr(pooler, "_PANEL_BYTES", 8 * 5 * tokens)
    assert torch.equal(pooler.sums_by(offsets, rows), expected)
    assert pooler.sums_by([0], rows[:0]).shape == (0, 5)


def test_masked_and_missing_tokens_do_not_count(sae: SparseAutoencoder) -> None:
    cube = torch.randn(3, 6, D)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 4:] = False
    mask[2] = False
    cube[0, 4:] = 1e3
    codes = extract_embeddings(sae, cube, mask=mask)
    assert codes == extract_embeddings(sae, [cube[0, :4], cube[1], cube[2, :0]])
    assert codes[2].nnz == 0
    assert extract_embeddings(sae, []).shape == (0, F)


def test_fewer_latents_than_asked_for_and_no_gradients(sae: SparseAutoencoder) -> None:
    codes = extract_embeddings(sae, torch.randn(2, 3, D), 10_000)
    assert 0 < codes[0].nnz <= 3 * K
    assert not codes.values.requires_grad


def test_bad_activations_are_named(sae: SparseAutoencoder) -> None:
    cube = torch.randn(3, 4, D)
    with pytest.raises(InputError, match=r"width 12, but document 0 has width 13"):
        extract_embeddings(sae, torch.randn(3, 4, 13))
    with pytest.raises(InputError, match=r"document 1 has activations torch.int64"):
        extract_embeddings(sae, [cube[0], torch.ones(2, D, dtype=torch.int64)])
    with pytest.raises(InputError, match=r"must be \[N,S,D\]"):
        extract_embeddings(sae, torch.randn(2, 3, 4, D))
    with pytest.raises(InputError, match="offsets must rise from 0 to 12"):
        extract_embeddings(sae, cube.reshape(-1, D), offsets=torch.tensor([0, 5, 4, 12]))
    with pytest.raises(InputError, match=r"mask has shape \[3, 5\]"):
        extract_embeddings(sae, cube, mask=torch.ones(3, 5))
    for value in (float("nan"), float("inf")):
        broken = cube.clone()
        broken[2, 1, 3] = value
        with pytest.raises(InputError, match="document 2 has NaN or infinite activations at token 1"):
            extract_embeddings(sae, broken, batch_tokens=5)
    with pytest.raises(ValueError, match="pooling must be one of mean, max"):
        extract_embeddings(sae, cube, pooling="median")
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        extract_embeddings(sae, cube, 0)
    with torch.no_grad():
        sae.encoder.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="its weights are broken"):
        extract_embeddings(sae, cube)


def _tap(**options: object) -> ActivationTap:
    return ActivationTap(
        make_model("llama"), "layers.1", tokenizer=make_tokenizer(), batch_tokens=256, **options
    )  # type: ignore[arg-type]


def _wide_sae() -> SparseAutoencoder:
    return SparseAutoencoder(WIDTH, SaeConfig(num_latents=64, k=4), seed=1)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_streaming_to_disk_equals_the_codes_in_memory(tmp_path: Path, pooling: str) -> None:
    rows = make_rows(23, longest=30)
    rows.insert(5, Row("blank", ""))
    rows.insert(9, Row("specials", "<s> <s>"))
    tap, sae = _tap(max_length=9, stride=2), _wide_sae()
    documents = [document.activations for document in tap.run(rows)]
    assert max(len(document) for document in documents) > 9, "some documents need several windows"
    wanted = extract_embeddings(sae, documents, 12, pooling=pooling)
    store = embed_rows(sae, tap, rows, tmp_path, top_k=12, pooling=pooling, shard_rows=7, dtype=torch.float32)
    assert store.codes() == wanted
    assert store.ids() == [row.id for row in rows]
    assert store.token_counts().tolist() == [len(document) for document in documents]
    assert [start for start, _ in store.iter_shards()] == [0, 7, 14, 21]
    assert SparseCodes.cat([part for _, part in store.iter_shards()]) == wanted
    for number, document in enumerate(documents):
        mean = document.double().mean(dim=0) if len(document) else torch.zeros(WIDTH, dtype=torch.float64)
        torch.testing.assert_close(store.dense()[number].double(), mean, rtol=2e-3, atol=2e-3)


def test_half_precision_store_keeps_kept_columns_and_places(tmp_path: Path) -> None:
    records = [{"id": f"r{n}", "text": row.content, "label": n % 3} for n, row in enumerate(make_rows(9))]
    corpus = open_corpus(records)
    seen: list[tuple[int, int]] = []
    options = {"keep_columns": ["label"], "shard_rows": 4, "progress": lambda *done: seen.append(done)}
    store = embed_rows(_wide_sae(), _tap(), corpus, tmp_path, dense=False, **options)  # type: ignore[arg-type]
    exact = embed_rows(_wide_sae(), _tap(), corpus, tmp_path / "exact", dtype=torch.float32)
    assert store.codes().values.dtype == torch.float16
    assert store.codes().indices.dtype == torch.uint16
    torch.testing.assert_close(store.codes().values.float(), exact.codes().values, rtol=1e-3, atol=1e-6)
    assert store.table(["label", "place"]).to_pylist()[7] == {"label": 1, "place": "rows:7"}
    assert seen[-1] == (9, store.num_tokens)
    assert seen == sorted(seen)
    with pytest.raises(StoreError, match="holds no dense vectors"):
        store.dense()


def test_width_mismatch_and_broken_rows_are_found_before_the_model_runs(
    sae: SparseAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = _tap()
    monkeypatch.setattr(ActivationTap, "batches", None)
    with pytest.raises(InputError, match=rf"width 12, but layer 'layers\.1' gives width {WIDTH}"):
        embed_rows(sae, tap, make_rows(2), tmp_path / "a")
    with pytest.raises(InputError, match="rows:2: column 'text' holds a number"):
        embed_rows(_wide_sae(), tap, open_corpus([{"text": "a"}, {"text": "b"}, {"text": 3}]), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no rows to embed"):
        embed_rows(_wide_sae(), tap, [], tmp_path / "c")


def test_values_beyond_half_precision_are_refused_and_zeros_dropped(tmp_path: Path) -> None:
    codes = SparseCodes.from_dense(torch.tensor([[0.0, 1e-9, 2.0], [0.0, 0.0, 0.0], [1.0, 3.0, 1e-9]]))
    with CodeStoreWriter(tmp_path / "a", 3) as writer:
        writer.write(codes, ["a", "b", "c"])
        writer.finish()
    found = CodeStore(tmp_path / "a").codes()
    assert found.indptr.tolist() == [0, 1, 1, 3]
    assert found.indices.tolist() == [2, 0, 1]
    with CodeStoreWriter(tmp_path / "b", 3) as writer:
        with pytest.raises(StoreError, match="store them as float32"):
            writer.write(SparseCodes.from_dense(torch.full((1, 3), 1e5)), ["a"])
        with pytest.raises(ValueError, match="ids has 1 values for 3 codes"):
            writer.write(codes, ["a"])
        with pytest.raises(ValueError, match="over 3 latents, not 4"):
            writer.write(SparseCodes.from_dense(torch.ones(1, 4)), ["a"])
