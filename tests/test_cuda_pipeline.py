"""What users call gives on a GPU what it gives on the CPU: codes, embeddings, training, an index with ids."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from finescope import CurationConfig, Index, SaeConfig, TrainingConfig, run_curation_pipeline, train_sae
from finescope.embeddings import POOLINGS, extract_embeddings
from finescope.sae import SparseAutoencoder
from support import cuda_calls
from support.equivalence import assert_same_bytes

pytestmark = cuda_calls.ONLY_CUDA


@pytest.fixture
def sae() -> SparseAutoencoder:
    return SparseAutoencoder(32, SaeConfig(num_latents=2000, k=12))


def _on_cpu(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().cpu() for tensor in found)


def test_codes(sae: SparseAutoencoder) -> None:
    x = torch.randn(70, 32)
    assert_same_bytes(_on_cpu(copy.deepcopy(sae).cuda().encode(x.cuda())), _on_cpu(sae.encode(x)))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings(sae: SparseAutoencoder, pooling: str) -> None:
    cube = torch.randn(9, 20, 32)
    wanted = extract_embeddings(sae, cube, 15, pooling=pooling)
    on_device = copy.deepcopy(sae).cuda()
    assert extract_embeddings(on_device, cube, 15, pooling=pooling) == wanted
    assert extract_embeddings(on_device, cube.cuda(), 15, pooling=pooling, batch_tokens=30) == wanted


def test_an_index_with_ids() -> None:
    corpus, queries = torch.randn(3000, 32), torch.randn(7, 32)
    names = torch.randperm(9000)[:3000]
    exclude = names[:14].view(7, 2)
    wanted = Index(corpus, ids=names).search(queries, 20, exclude=exclude)
    index = Index(corpus.cuda(), ids=names)
    for _ in range(2):
        assert_same_bytes(_on_cpu(index.search(queries.cuda(), 20, exclude=exclude.cuda())), wanted)
        assert_same_bytes(_on_cpu(index.search(queries.cuda(), 20, exclude=exclude.numpy())), wanted)


@pytest.mark.parametrize("multi_topk", [False, True])
def test_training_repeats_and_learns(multi_topk: bool) -> None:
    data = torch.randn(400, 8) @ torch.randn(8, 32) + 0.1 * torch.randn(400, 32)
    cfg = SaeConfig(num_latents=500, k=8, multi_topk=multi_topk)
    options = TrainingConfig(
        batch_size=50, num_epochs=12, learning_rate=3e-3, device="cuda", dead_feature_threshold=200
    )
    records: list[list[float]] = []
    weights: list[tuple[Tensor, ...]] = []
    for _ in range(2):
        losses: list[float] = []
        sae = train_sae(
            data, cfg, options, progress=lambda record, losses=losses: losses.append(record["loss"])
        )
        assert sae.device.type == "cuda"
        records.append(losses)
        weights.append(_on_cpu(tuple(sae.parameters())))
    assert_same_bytes(*weights)
    assert records[0] == records[1]
    assert records[0][-1] < records[0][0] / 2


def test_a_curation(sae: SparseAutoencoder) -> None:
    targets, pool = torch.randn(5, 6, 32) + 1, torch.randn(60, 6, 32)
    cfg = CurationConfig(top_k_selection=10, use_clustering=False)
    wanted = run_curation_pipeline(targets, pool, sae, cfg)
    found = run_curation_pipeline(targets.cuda(), pool.cuda(), copy.deepcopy(sae).cuda(), cfg)
    assert list(found["selected_indices"]) == list(wanted["selected_indices"])
