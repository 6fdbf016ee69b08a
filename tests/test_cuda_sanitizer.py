"""compute-sanitizer over a call of every operation: out of bounds, races, reads of what nobody wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import finescope
from support import cuda_calls

pytestmark = [*cuda_calls.ONLY_CUDA, pytest.mark.slow]

SANITIZER = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_tool(tool: str) -> None:
    environment = {
        **os.environ,
        # Every tensor is an allocation of its own, so that a step over its end is one out of bounds.
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONPATH": str(Path(finescope.__file__).parents[1]),
    }
    command = [str(SANITIZER), "--tool", tool, "--error-exitcode", "9", "--kernel-name", "kns=finescope"]
    if tool == "memcheck":  # torch asks the driver for functions that it may lack, and for what pointers are
        command += ["--report-api-errors", "no"]
    done = subprocess.run(
        [*command, sys.executable, str(Path(cuda_calls.__file__))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    output = done.stdout[-6000:] + done.stderr[-2000:]
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not work on this machine")
    assert done.returncode == 0, output
    assert "ERROR SUMMARY: 0 errors" in output or "RACECHECK SUMMARY: 0 hazards" in output, output
    assert f"{len(cuda_calls.CALLS)} calls" in output, output
