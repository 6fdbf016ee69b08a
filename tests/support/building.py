"""What the tests of the build share: a plan for this machine, a checkout with hardly anything to compile."""

from __future__ import annotations

from pathlib import Path

import pytest

import build_native
import finescope

ROOT = Path(finescope.__file__).resolve().parent.parent
CHECKOUT = pytest.mark.skipif(not (ROOT / "build_native.py").exists(), reason="not a checkout")
_VARIABLES = (
    "CXX",
    "FINESCOPE_BUILD",
    "TORCH_CUDA_ARCH_LIST",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDACXX",
    "MAX_JOBS",
)


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build as on a machine where nobody has set anything."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FINESCOPE_BUILD_CACHE", "off")


def cpu_plan() -> build_native.Plan:
    """The plan of the CPU's objects; skips where there is no compiler."""
    try:
        return build_native.make_plan("cpu", ROOT)
    except build_native.BuildError as error:
        pytest.skip(str(error))


def fake_tree(root: Path, *, cuda: bool) -> Path:
    """A checkout with a C++ source an object and, if asked for, one CUDA kernel."""
    for name, text in (
        ("cpu/operations.cpp", 'extern "C" [[gnu::visibility("default")]] int finescope_f() { return 1; }\n'),
        (
            "python/module.cpp",
            '#include <Python.h>\nextern "C" int finescope_f();\nint g() { return finescope_f(); }\n',
        ),
    ):
        (root / "csrc/bindings" / name).parent.mkdir(parents=True)
        (root / "csrc/bindings" / name).write_text(text)
    if cuda:
        (root / "csrc/cuda").mkdir()
        (root / "csrc/cuda/twice.cu").write_text(
            "#include <torch/csrc/stable/tensor.h>\n"
            "__global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n"
            'extern "C" void run(float* x) { twice<<<1, 32>>>(x); }\n'
        )
    return root
