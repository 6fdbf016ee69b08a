"""Tokens with any number of latents: pooled to the bytes of padded ones; signed ones with their signs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.config import SaeConfig
from finescope.embeddings import extract_embeddings
from finescope.ops import pool_codes
from finescope.ops import pooling as module
from finescope.sae.architectures.abstopk import AbsTopKAutoencoder
from finescope.sae.architectures.relu import ReluAutoencoder

REDUCTIONS = ["mean", "max", "sum", "sqrt_mean", "count"]


def padded(codes: SparseCodes) -> tuple[Tensor, Tensor]:
    """The same codes with as many slots as the longest token needs."""
    lengths = codes.indptr.diff()
    slots = torch.arange(int(lengths.max()))
    held = slots < lengths[:, None]
    places = torch.where(held, codes.indptr[:-1, None] + slots, 0)
    return codes.values[places].where(held, 0), codes.indices[places].long().where(held, 0)


def tokens(count: int, latents: int, share: float) -> SparseCodes:
    dense = torch.randn(count, latents).abs() * (torch.rand(count, latents) < share)
    dense[5] = 0
    dense[7] = torch.rand(latents)  # a token that holds everything
    return SparseCodes.from_dense(dense)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("keep", [1, 7, 60])
def test_the_bytes_of_padded_tokens(reduce: str, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = tokens(200, 60, 0.1)
    offsets = torch.tensor([0, 0, 3, 40, 40, 41, 190, 200])
    expected = pool_codes(*padded(codes), offsets, reduce=reduce, keep=keep)
    for block in (1 << 20, 50):
        monkeypatch.setattr(module, "_BLOCK_ENTRIES", block)
        found = pool_codes(codes, None, offsets, reduce=reduce, keep=keep)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_signed_codes(reduce: str) -> None:
    codes = SparseCodes.from_dense(
        torch.tensor([[1.0, -4.0, 0.0, 2.0], [3.0, 1.0, 0.0, -2.0], [0.0, 0.0, -5.0, 0.0]])
    )
    expected = {
        "mean": [[4 / 3, -1.0, -5 / 3, 0.0]],
        "sum": [[4.0, -3.0, -5.0, 0.0]],
        "max": [[3.0, -4.0, -5.0, 2.0]],
        "sqrt_mean": [[math.sqrt(4 / 3), -1.0, -math.sqrt(5 / 3), 0.0]],
        "count": [[2.0, 2.0, 1.0, 2.0]],
    }[reduce]
    values, latents = pool_codes(codes, None, torch.tensor([0, 3]), reduce=reduce, keep=4)
    assert latents.tolist() == [[0, 1, 2, 3]]
    torch.testing.assert_close(values, torch.tensor(expected))
    values, latents = pool_codes(codes, None, torch.tensor([0, 3]), reduce="mean", keep=2)
    assert latents.tolist() == [[0, 2]]  # the largest in size


def test_what_is_no_number_is_left_out() -> None:
    codes = SparseCodes(
        torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1]), torch.tensor([math.nan, math.inf, 2.0]), 2
    )
    values, latents = pool_codes(codes, None, torch.tensor([0, 2]), reduce="sum", keep=2)
    assert (values.tolist(), latents.tolist()) == ([[2.0, 0.0]], [[1, -1]])


def test_bad_calls() -> None:
    codes = tokens(10, 4, 0.5)
    with pytest.raises(ValueError, match="must be None"):
        pool_codes(codes, torch.zeros(1, 1), torch.tensor([0, 10]), keep=1)
    with pytest.raises(ValueError, match="run from 0 to B=10"):
        pool_codes(codes, None, torch.tensor([0, 9]), keep=1)
    with pytest.raises(ValueError, match="like values, got None"):
        pool_codes(torch.zeros(1, 1), None, torch.tensor([0, 1]), keep=1)
    with pytest.raises(ValueError, match="reduce must be one of"):
        pool_codes(codes, None, torch.tensor([0, 10]), reduce="median", keep=1)


@pytest.mark.parametrize("kind", [ReluAutoencoder, AbsTopKAutoencoder])
@pytest.mark.parametrize("batch", [8192, 9])
def test_documents_of_an_autoencoder_whose_tokens_hold_many(kind: type, batch: int) -> None:
    sae = kind(6, SaeConfig(num_latents=20, k=3), seed=2)
    documents = [torch.randn(length, 6) for length in (1, 4, 12, 0, 7)]
    codes = extract_embeddings(sae, documents, 5, pooling="mean", batch_tokens=batch)
    codes.validate()
    for row, document in enumerate(documents):
        dense = sae.encode_sparse(document).to_dense().double()
        mean = dense.sum(0) / max(1, len(document))
        strongest = mean.abs().sort(descending=True, stable=True).indices[:5]
        expected = torch.zeros(20, dtype=torch.float64)
        expected[strongest] = mean[strongest]
        torch.testing.assert_close(codes[row].to_dense()[0].double(), expected, rtol=1e-6, atol=1e-9)
    assert (codes.values < 0).any() == kind.signed
