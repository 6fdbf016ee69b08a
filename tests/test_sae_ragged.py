"""Codes of many rows by parts of few: what is put together is what each row has alone.

Fails if: parts have a say in the codes; a part overwrites another, or room that wasn't needed is left in; a
dtype is lost; NaN go, or zeros stay.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finescope.codes import SparseCodes
from finescope.config import SaeConfig
from finescope.sae import ragged
from finescope.sae.architectures import architecture_class, groupmax
from finescope.sae.ragged import top_rows


def drawn(dtype: torch.dtype) -> torch.Tensor:
    """Rows of 30 latents of which any number isn't 0; one has none, one is NaN."""
    rows = torch.relu(torch.randn(23, 30, generator=torch.Generator().manual_seed(0))).to(dtype)
    rows[4], rows[9] = 0, torch.nan
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pairs", [1, 24, 100, 10_000])
def test_parts_are_put_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, pairs: int
) -> None:
    rows, seen = drawn(dtype), []

    def top(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(part))
        found = part.float().nan_to_num(9.0).topk(12)  # descending, so that latents have to be sorted
        return part.gather(1, found.indices), found.indices

    monkeypatch.setattr(ragged, "PAIRS", pairs)
    codes = top_rows(rows, 12, 30, top)
    assert max(seen) <= max(1, pairs // 48)
    assert sum(seen) == 23
    values, indices = top(rows)
    wanted = torch.zeros_like(rows).scatter(1, indices, values)
    assert codes.values.dtype == dtype
    assert codes.indices.dtype == torch.int32
    for row in range(23):
        held = slice(int(codes.indptr[row]), int(codes.indptr[row + 1]))
        latents = wanted[row].nonzero().squeeze(1)
        assert codes.indices[held].tolist() == latents.tolist()
        assert torch.equal(codes.values[held].nan_to_num(-1), wanted[row, latents].nan_to_num(-1))
    assert codes.values.untyped_storage().nbytes() == codes.values.nbytes
    assert SparseCodes(codes.indptr, codes.indices, codes.values, 30) == codes or codes.values.isnan().any()


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "gated_topk", "lista", "groupmax"])
def test_architectures_give_the_same_in_many_parts(monkeypatch: Any, architecture: str) -> None:
    sae = architecture_class(architecture)(16, SaeConfig(num_latents=64, k=8, multi_topk=False), seed=1)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name == "W_mag":
                tensor.copy_(sae.encoder.weight)
            elif name in ("r_mag", "eta", "steps"):
                tensor.fill_(int(name == "steps"))
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(2))
    whole = sae.encode_sparse(x)
    monkeypatch.setattr(ragged, "PAIRS", 70)
    assert sae.encode_sparse(x) == whole
    assert sae.encode_sparse(x[:0]) == whole[:0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [8, 16, 64])
def test_groups_looked_at_together_give_what_each_gives_alone(monkeypatch: Any, dtype: Any, k: int) -> None:
    shape = SaeConfig(num_latents=64, k=k, multi_topk=False)
    sae = architecture_class("groupmax")(16, shape, dtype=dtype, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        sae.encoder.bias.copy_(0.1 * torch.randn(64, generator=generator))
        for same, latent in ((3, 1), (5, 4), (6, 4)):
            sae.encoder.weight[same] = sae.encoder.weight[latent]
            sae.encoder.bias[same] = sae.encoder.bias[latent]
        sae.encoder.weight[17] *= 1e4
    x = torch.randn(40, 16, generator=generator, dtype=torch.promote_types(dtype, torch.float32))
    x[3], x[4], x[5], x[6], x[7, 0] = 0, torch.nan, x[5] * 1e30, x[6] * 1e-30, torch.inf
    found = []
    for many in (1, 1000):
        monkeypatch.setattr(groupmax, "_MANY", many)
        found.append(sae.encode_sparse(x))
    together, alone = found
    assert torch.equal(together.indptr, alone.indptr)
    assert torch.equal(together.indices, alone.indices)
    assert torch.equal(together.values.nan_to_num(-1), alone.values.nan_to_num(-1))
    p = (x[8:].double() - sae.b_dec.double()) @ sae.encoder.weight.double().T + sae.encoder.bias.double()
    wanted = torch.relu(p).view(32, k, -1).amax(2)
    held = together.to_dense()[8:].view(32, k, -1)
    torch.testing.assert_close(held.amax(2).double(), wanted, rtol=1e-5, atol=1e-6)
    assert int((held != 0).sum(2).max()) == 1
