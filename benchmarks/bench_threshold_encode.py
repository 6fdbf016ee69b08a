"""``threshold_encode`` against torch's linear, comparison and ``to_sparse_csr``.

And, where sae-lens is installed, against its dense ``encode`` of the same JumpReLU autoencoder.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import data, grid, harness
from finescope.codes import SparseCodes
from finescope.ops import PackedMatrix, threshold_encode


def limits(x: Tensor, weight: Tensor, bias: Tensor, kept: int) -> Tensor:
    """[F] thresholds that about ``kept`` latents of a row exceed; they differ by up to a fifth."""
    factor = 0.9 + 0.2 * torch.rand(len(weight), generator=torch.Generator().manual_seed(3))
    scores = (linear(x[:64], weight, bias) / factor).flatten()
    return factor * scores.kthvalue(len(scores) - kept * len(x[:64])).values.item()


def check(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> None:
    """Hold a few rows against float64."""
    some = x[:: max(1, len(x) // 16)][:16]
    exact = some.double() @ weight.double().T + bias.double()
    for screen in ("auto", "float32"):
        codes = threshold_encode(some, weight, bias, threshold, screen=screen)
        kept = exact > threshold.double()
        # float64 sums of another order differ in their last places.
        near = (exact - threshold.double()).abs() < 1e-12
        found = codes.to_dense()
        assert bool(((found != 0) == kept)[~near].all()), "another set of latents"
        torch.testing.assert_close(found.double()[~near], exact.where(kept, 0)[~near], rtol=2.0**-23, atol=0)


def sae_lens(weight: Tensor, bias: Tensor, threshold: Tensor) -> Any:
    """The same autoencoder in sae-lens, or None."""
    if importlib.util.find_spec("sae_lens") is None:
        return None
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    f, d = weight.shape
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d, d_sae=f, apply_b_dec_to_input=False))
    made = {"W_enc": weight.T.contiguous(), "b_enc": bias, "threshold": threshold, "b_dec": torch.zeros(d)}
    sae.load_state_dict({**sae.state_dict(), **made})
    return sae


def peak(work: harness.Work) -> float:
    """MiB that the process grows by at the peak of a call, its result included."""

    def held(name: str) -> int:
        found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found.group(1))

    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = held("VmRSS")
    work()
    return (held("VmHWM") - before) / 1024


@pytest.mark.parametrize(
    ("kind", "size"),
    grid.cases(grid.THRESHOLDS, grid.THRESHOLDS_BIG, {}, "BDFL"),
)
def bench_threshold_encode(benchmark: Any, kind: str, size: tuple[int, int, int, int]) -> None:
    b, d, f, kept = size
    x, (weight, bias) = data.rows(kind, b, d), data.encoder(f, d)
    threshold = limits(x, weight, bias, kept)
    packed = PackedMatrix(weight, metric="encode")

    def ours() -> SparseCodes:
        return threshold_encode(x, weight, bias, threshold)

    def torch_csr() -> Tensor:
        scores = linear(x, weight, bias)
        return scores.where(scores > threshold, 0.0).to_sparse_csr()

    memory = {"ours": peak(ours), "torch float32": peak(torch_csr)}
    check(x, weight, bias, threshold)
    held = len(ours().values) / b
    assert 0.8 < held / kept < 1.25, f"{held} latents of a row exceed"
    peers: dict[str, harness.Work] = {
        "ours, packed before": lambda: packed.threshold_encode(x, bias, threshold),
        "ours, float32 screen": lambda: threshold_encode(x, weight, bias, threshold, screen="float32"),
        "torch float32": torch_csr,
    }
    theirs = sae_lens(weight, bias, threshold)
    if theirs is not None:

        def encode() -> Tensor:
            with torch.no_grad():
                return theirs.encode(x)  # type: ignore[no-any-return]

        off = (encode() - ours().to_dense()).abs() > 1e-4
        assert off.float().mean() < 1e-6, "more than float32 confuses at a threshold"
        peers["sae-lens"] = encode
        memory["sae-lens"] = peak(encode)
    benchmark.extra_info["peak_mib"] = memory
    print("  " + "  ".join(f"{name}: {mib:.0f} MiB" for name, mib in memory.items()))
    harness.compare(benchmark, ours, peers, limit=harness.Limit(b * d * f, d, weight if b < 8 else None))
