"""The CUDA object: built where nvcc, torch and driver fit, and words for everything that doesn't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import build_native
import build_tools
from support.building import CHECKOUT, cpu_plan, fake_tree, forget_settings

pytestmark = CHECKOUT


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture(scope="module")
def plan() -> build_native.Plan:
    return cpu_plan()


@pytest.fixture
def torch_with_cuda(monkeypatch: pytest.MonkeyPatch, plan: build_native.Plan) -> build_tools.Torch:
    """The headers that are here, of a torch that would run CUDA kernels."""
    torch = build_tools.Torch(plan.torch.root, plan.torch.version, "13.0")
    monkeypatch.setattr(build_tools, "find_torch", lambda: torch)
    return torch


def test_a_torch_without_cuda_gets_none_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: build_native.Plan
) -> None:
    root = fake_tree(tmp_path / "tree", cuda=True)
    torch = build_tools.Torch(plan.torch.root, "2.13.0+cpu", None)
    monkeypatch.setattr(build_tools, "find_torch", lambda: torch)
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path, "13.0"))
    planned = build_native.make_plan("auto", root)
    assert sorted(target.name for target in planned.targets) == ["_C", "libfinescope"]
    assert planned.skipped == {
        "cuda": "torch 2.13.0+cpu has no CUDA; FINESCOPE_BUILD=cuda compiles it all the same"
    }
    asked = build_native.make_plan("cuda", root)
    assert sorted(target.name for target in asked.targets) == ["_C", "libfinescope", "libfinescope_cuda"]
    assert asked.skipped == {}


@pytest.mark.usefixtures("torch_with_cuda")
def test_cuda_without_kernels_fails_loudly_and_auto_says_so(tmp_path: Path, plan: build_native.Plan) -> None:
    root = fake_tree(tmp_path, cuda=False)
    with pytest.raises(build_native.BuildError, match=r"FINESCOPE_BUILD=cuda: .*no CUDA kernels"):
        build_native.build("cuda", root)
    assert "no CUDA kernels" in build_native.make_plan("auto", root).skipped["cuda"]


@pytest.mark.usefixtures("torch_with_cuda")
def test_cuda_without_nvcc_fails_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: build_native.Plan
) -> None:
    root = fake_tree(tmp_path, cuda=True)
    monkeypatch.setattr(build_tools, "find_nvcc", _raise_no_nvcc)
    with pytest.raises(build_native.BuildError, match=r"FINESCOPE_BUILD=cuda: nvcc not found"):
        build_native.build("cuda", root)
    planned = build_native.make_plan("auto", root)
    assert sorted(target.name for target in planned.targets) == ["_C", "libfinescope"]
    assert "nvcc not found" in planned.skipped["cuda"]


def _raise_no_nvcc() -> str:
    raise build_native.BuildError("nvcc not found: install the CUDA toolkit, or set CUDA_HOME")


@pytest.mark.slow
def test_cuda_object_compiles_against_any_torch(tmp_path: Path, plan: build_native.Plan) -> None:
    """With nvcc the CUDA object is built, also where torch is a CPU build, and apart from the CPU object."""
    try:
        build_tools.find_nvcc()
    except build_native.BuildError as error:
        pytest.skip(str(error))
    outcome = build_native.build("cuda", fake_tree(tmp_path, cuda=True))
    assert sorted(outcome.objects) == ["_C", "libfinescope", "libfinescope_cuda"]
    assert all(path.exists() for path in outcome.objects.values())
    assert b"libcudart" not in outcome.objects["libfinescope"].read_bytes()


def fake_nvcc(folder: Path, release: str) -> str:
    """A compiler that says its version and fails at everything else."""
    path = folder / "nvcc"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || exit 1\n'
        f"echo 'Cuda compilation tools, release {release}, V{release}.88'\n"
    )
    path.chmod(0o755)
    return str(path)


def torch_of(cuda: str | None, hip: str | None = None) -> object:
    return build_tools.Torch(Path("torch"), "2.11.0", cuda, hip)


@pytest.mark.parametrize(
    ("release", "cuda", "driver"),
    [
        ("13.0", None, None),  # a torch without CUDA: a check that everything compiles
        ("13.2", "13.0", None),
        ("12.4", "12.9", (12, 2)),
        ("12.8", "13.0", None),  # every driver for CUDA 13 runs code for CUDA 12
        ("13.0", "12.8", (13, 0)),
    ],
)
def test_nvcc_and_torch_that_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    cuda: str | None,
    driver: tuple[int, int] | None,
) -> None:
    monkeypatch.setattr(build_tools, "driver_version", lambda: driver)
    build_tools.check_nvcc_fits(fake_nvcc(tmp_path, release), torch_of(cuda))


@pytest.mark.parametrize(("driver", "has"), [(None, "none"), ((12, 9), "one for CUDA 12.9")])
def test_an_nvcc_that_is_too_new_for_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: tuple[int, int] | None, has: str
) -> None:
    monkeypatch.setattr(build_tools, "driver_version", lambda: driver)
    message = (
        rf"CUDA 13\.0 \(.*nvcc\) but torch 2\.11\.0 of CUDA 12\.8: .* this machine has {has}; "
        "set CUDA_HOME to a toolkit of CUDA 12, or install a torch built for CUDA 13"
    )
    with pytest.raises(build_native.BuildError, match=message):
        build_tools.check_nvcc_fits(fake_nvcc(tmp_path, "13.0"), torch_of("12.8"))


def test_a_torch_for_rocm_gets_no_cuda_object(tmp_path: Path) -> None:
    with pytest.raises(build_native.BuildError, match="built for ROCm"):
        build_tools.check_nvcc_fits(fake_nvcc(tmp_path, "13.0"), torch_of(None, "6.4"))


def test_an_nvcc_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(build_native.BuildError, match="cannot be run"):
        build_tools.nvcc_version(str(tmp_path / "nothing"))
    with pytest.raises(build_native.BuildError, match="names no CUDA release"):
        build_tools.nvcc_version(shutil.which("true") or "true")


def test_nvcc_that_disagrees_is_a_reason_for_auto_and_an_error_for_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: build_native.Plan
) -> None:
    root = fake_tree(tmp_path / "tree", cuda=True)
    found = build_tools.find_torch()
    monkeypatch.setattr(
        build_tools, "find_torch", lambda: build_tools.Torch(found.root, found.version, "12.8")
    )
    monkeypatch.setattr(build_tools, "driver_version", lambda: None)
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path, "13.0"))
    assert "install a torch built for CUDA 13" in build_native.make_plan("auto", root).skipped["cuda"]
    with pytest.raises(build_native.BuildError, match="FINESCOPE_BUILD=cuda: nvcc is of CUDA 13"):
        build_native.build("cuda", root)


@pytest.mark.usefixtures("torch_with_cuda")
def test_a_failing_nvcc_costs_auto_only_the_cuda_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: build_native.Plan
) -> None:
    root = fake_tree(tmp_path / "tree", cuda=True)
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path, "13.0"))
    outcome = build_native.build("auto", root)
    assert sorted(outcome.objects) == ["_C", "libfinescope"]
    assert outcome.objects["libfinescope"].exists()
    assert "nvcc failed" in outcome.skipped["cuda"]
    assert outcome.architectures == ()
    with pytest.raises(build_native.BuildError, match="FINESCOPE_BUILD=cuda: the compiler failed"):
        build_native.build("cuda", root)


def test_the_record_says_what_the_cuda_object_is_compiled_for(tmp_path: Path) -> None:
    outcome = build_native.Outcome("auto", {}, {}, "2.11.0", "c++", ("sm_80", "sm_90", "compute_90"))
    record = json.loads(outcome.write_record(tmp_path).read_text())
    assert record["cuda_architectures"] == ["sm_80", "sm_90", "compute_90"]


def test_cuda_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_native.cuda_architectures() == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    )
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a 10.0")
    assert build_native.cuda_architectures() == (
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
    )
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build_native.BuildError, match="TORCH_CUDA_ARCH_LIST: 'Hopper'"):
        build_native.cuda_architectures()
