"""``finescope info`` on the CUDA object: what it is compiled for, why it is idle, which GPU can't run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finescope import diagnostics
from finescope.ops import native

LOADED = {
    "loaded": True,
    "file": "libfinescope_cuda.so",
    "versions": {"compiler": "nvcc 13.0", "torch_headers": "2.11.0"},
    "architectures": ["sm_80", "sm_90", "compute_90"],
}


def said(cuda: dict[str, Any], status: dict[str, Any] = LOADED) -> str:
    state = {**diagnostics.collect(), "cuda": cuda}
    state["native"] = {**state["native"], "cuda": status}
    return diagnostics.render(state)


def test_an_object_without_a_device_is_idle() -> None:
    text = said({"available": False, "reason": "this torch is a CPU build", "remedy": ""})
    assert "compiled for: sm_80, sm_90, compute_90" in text
    assert "idle: this torch is a CPU build" in text
    assert "built with nvcc 13.0, headers of torch 2.11.0" in text


def device(*capability: int) -> dict[str, Any]:
    return {"available": True, "version": "13.0", "devices": ["A GPU"], "capabilities": [list(capability)]}


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 1)])
def test_a_device_that_fits(capability: tuple[int, int]) -> None:
    text = said(device(*capability))
    assert "idle" not in text
    assert "warning: A GPU" not in text
    assert "A GPU (CUDA 13.0)" in text


def test_a_device_that_is_too_old() -> None:
    text = said(device(7, 5))
    assert "warning: A GPU has compute capability 7.5, which it is not compiled for" in text
    assert "TORCH_CUDA_ARCH_LIST=7.5" in text


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_80"], [8, 9], True),
        (["sm_86"], [8, 0], False),
        (["sm_80"], [9, 0], False),
        (["sm_90a"], [9, 0], True),
        (["sm_90a", "compute_90a"], [10, 0], False),
        (["compute_80"], [12, 0], True),
        (["sm_100f"], [10, 3], True),
        (["sm_100f"], [12, 0], False),
        (["sm_120"], [12, 0], True),
    ],
)
def test_what_code_runs_where(architectures: list[str], capability: list[int], runs: bool) -> None:
    assert diagnostics._runs_on(capability, architectures) is runs


def test_a_torch_for_rocm_is_kept_from_the_cuda_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ROCm's tensors go by the dispatch key CUDA: kernels of the other kind would be called for them."""
    (tmp_path / "libfinescope_cuda.so").touch()
    monkeypatch.setattr(native, "_PACKAGE", tmp_path)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "_reasons", {})
    monkeypatch.setattr(torch.version, "hip", "6.4")
    native._load_object("cuda")
    status = native.status()["cuda"]
    assert not status["loaded"]
    assert "ROCm" in status["reason"]
