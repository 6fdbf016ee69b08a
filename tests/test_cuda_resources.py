"""Every .cu file compiles for the architectures that are shipped, within the registers and without spills.

The compiler's report is the only thing about a kernel's speed that can be held to without a GPU.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import build_native
import build_tools
import finescope

ROOT = Path(finescope.__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))

pytestmark = pytest.mark.skipif(not SOURCES, reason="not a checkout")

ARCHITECTURES = ["sm_90", pytest.param("sm_80", marks=pytest.mark.slow)]
# What a thread may have at most; with more, the compiler has spilled already.
MOST_REGISTERS = 255


@pytest.fixture(scope="module")
def command() -> list[str]:
    try:
        plan = build_native.make_plan("cuda", ROOT)
    except build_tools.BuildError as error:
        pytest.skip(str(error))
    includes = [flag.replace("-isystem", "-I") for flag in plan.flags if flag.startswith(("-I", "-isystem"))]
    flags = [flag for flag in plan.nvcc_flags if not flag.startswith("-gencode")]
    return [str(plan.nvcc), *flags, *includes, "-ccbin", plan.compiler[-1], "-Xptxas=-v"]


def report(text: str) -> dict[str, dict[str, int]]:
    """What ptxas says of each kernel: registers, stack frame, spills, shared memory; bytes but the first."""
    found: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in text.splitlines():
        named = re.search(r"(?:Compiling entry function|Function properties for) '?([\w$]+)'?", line)
        if named:
            kernel = named[1]
            found.setdefault(kernel, {})
        for number, what in re.findall(
            r"(\d+) bytes (stack frame|spill stores|spill loads|smem)", line
        ) + re.findall(r"Used (\d+) (registers)", line):
            found.setdefault(kernel, {})[what] = int(number)
    return found


def test_the_report_is_read() -> None:
    text = """ptxas info    : Compiling entry function '_Z1aPf' for 'sm_90'
ptxas info    : Function properties for _Z1aPf
    48 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 48 bytes cumulative stack size, 1024 bytes smem"""
    assert report(text) == {
        "_Z1aPf": {"stack frame": 48, "spill stores": 12, "spill loads": 8, "registers": 40, "smem": 1024}
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_resources(source: Path, architecture: str, command: list[str], tmp_path: Path) -> None:
    made = tmp_path / "kernels.cubin"
    done = subprocess.run(
        [*command, f"-arch={architecture}", "-cubin", str(source), "-o", str(made)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning" not in done.stderr.lower(), done.stderr[-4000:]
    kernels = report(done.stderr)
    if "__global__" in source.read_text():
        assert kernels, done.stderr[-2000:]
    for name, used in kernels.items():
        assert used.get("spill stores", 0) == used.get("spill loads", 0) == 0, (name, used)
        assert used.get("registers", 0) <= MOST_REGISTERS, (name, used)
        assert used.get("smem", 0) <= 48 << 10, (name, used)
