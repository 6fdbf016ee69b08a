"""Memory of an encoding: the block [B,F] of pre-activations must never exist, whatever the architecture.

Each is measured in a process of its own, by the kernel's count of what was resident at most.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from finescope.sae.architectures import ARCHITECTURES

_SCRIPT = """
import torch
from pathlib import Path
from finescope.config import SaeConfig
from finescope.ops import PackedMatrix
from finescope.sae.architectures import architecture_class

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

torch.manual_seed(0)
B, D, F, K = {tokens}, 64, 32768, {k}
sae = architecture_class("{architecture}")(D, SaeConfig(num_latents=F, k=K, multi_topk=False))
x = torch.randn(B, D)
share = {share}  # of the latents that exceed their thresholds
with torch.no_grad():
    dots = x[:256] @ sae.encoder.weight.T
    limit = float(dots.flatten()[::7].sort().values[int(-share * dots[:, ::7].numel())])
    for name, tensor in sae.state_dict().items():
        if name == "threshold":
            tensor.fill_(limit)
        elif name in ("gate_bias", "encoder.bias") and "{architecture}" in ("gated", "relu"):
            tensor.fill_(-limit)
        elif name == "W_mag":
            tensor.copy_(sae.encoder.weight)
        elif name == "mag_bias":
            tensor.fill_(-{lift})
        elif name in ("r_mag", "alpha_logit", "eta"):
            tensor.zero_()
        elif name == "steps":
            tensor.fill_(1)
sae.encode_sparse(x[:8])
before = peak()
codes = sae.encode_sparse(x)
made = sum(part.nbytes for part in (codes.indptr, codes.indices, codes.values)) / 2**20
taken = peak() - before
packed = PackedMatrix(sae.encoder.weight, metric="encode").packed.nbytes / 2**20
print(taken - made - packed, codes.nnz / B)
"""


def measure(
    architecture: str, *, share: float, lift: float = 0.0, tokens: int = 2048, k: int = 64
) -> tuple[float, float]:
    """MiB above what the codes and the packed weights take, and latents per token."""
    script = _SCRIPT.format(architecture=architecture, share=share, lift=lift, tokens=tokens, k=k)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak, held = map(float, done.stdout.split())
    return peak, held


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@linux
@pytest.mark.requires_native
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_architecture_holds_all_pre_activations(architecture: str) -> None:
    """[B,F] would be 256 MiB."""
    peak, held = measure(architecture, share=0.002)
    assert held > 25
    assert peak < 64


@linux
@pytest.mark.requires_native
@pytest.mark.parametrize(
    ("architecture", "tokens", "k"),
    [
        ("topk", 2048, 1000),
        ("topk", 2048, 4000),
        ("topk", 512, 20_000),
        ("abstopk", 1024, 4000),
        ("groupmax", 1024, 4096),
    ],
)
def test_with_thousands_of_latents_a_token_neither_blocks_nor_codes_are_held_twice(
    architecture: str, tokens: int, k: int
) -> None:
    """Of 4000 latents a token, values and latents [B,K] would be 94 MiB, the codes 62."""
    peak, held = measure(architecture, share=0.002, tokens=tokens, k=k)
    assert held > 0.7 * k  # of 20 000 about 16 000 are positive
    assert peak < 64


@linux
@pytest.mark.requires_native
@pytest.mark.parametrize("architecture", ["capped_jumprelu", "gated"])
def test_what_is_found_and_then_left_out_is_not_held_either(architecture: str) -> None:
    """A fifth of all latents exceed their thresholds, few of them are kept."""
    peak, held = measure(architecture, share=0.2, lift=1.6)
    assert 25 < held < 200
    assert peak < 64


@linux
@pytest.mark.requires_native
def test_what_is_found_is_held_once() -> None:
    """Of 2000 latents per token, 62 MiB, which come in pieces of an unknown number."""
    peak, held = measure("jumprelu", share=0.0611, tokens=4096)
    assert held > 1900
    assert peak < 64
