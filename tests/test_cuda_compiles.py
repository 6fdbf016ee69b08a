"""Every CUDA source compiles for every architecture that is shipped, and no kernel spills registers.

A spilled register is a round trip to memory in the innermost loop, which no other test sees.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import build_native  # noqa: E402
import build_tools  # noqa: E402

sys.path.remove(str(ROOT))

pytestmark = pytest.mark.slow

SOURCES = sorted(path.name for path in (ROOT / "csrc/cuda").glob("*.cu"))
# Bytes that the kernels of a file may spill, with the reason.
ALLOWED: dict[str, int] = {}
MOST_REGISTERS = 128  # two blocks of 256 threads to a processor

KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<spilled>\d+) bytes spill stores"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def _nvcc() -> str:
    try:
        return build_tools.find_nvcc()
    except build_native.BuildError as error:
        pytest.skip(f"no CUDA compiler: {error}")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES)
def test_registers(source: str, architecture: str, tmp_path: Path) -> None:
    nvcc = _nvcc()
    plan = build_native.make_plan("cuda", ROOT)
    flags = [flag for flag in plan.nvcc_flags if not flag.startswith("-gencode")]
    command = [nvcc, *flags, f"-arch={architecture}", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-cubin"]
    done = subprocess.run(
        [*command, str(ROOT / "csrc/cuda" / source), "-o", str(tmp_path / "out.cubin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    kernels = list(KERNEL.finditer(done.stderr))
    assert kernels or "__global__" not in (ROOT / "csrc/cuda" / source).read_text()
    for kernel in kernels:
        assert int(kernel["spilled"]) <= ALLOWED.get(source, 0), kernel["name"]
        assert int(kernel["registers"]) <= MOST_REGISTERS, kernel["name"]
