"""The memory of a command doesn't grow with the number of batches: freed blocks go back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import random, sys
import torch
from click.testing import CliRunner
from finescope.cli import main

if "settle" in sys.argv:
    assert CliRunner().invoke(main, ["info"]).exit_code == 0

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

draw, small = random.Random(0), []
torch.zeros(8 << 20)  # a freed block raises the threshold
before = resident()
for _ in range(400):
    held = [torch.ones(draw.randrange(1 << 19, 4 << 20)) for _ in range(4)]
    small.append(torch.ones(draw.randrange(1 << 8, 1 << 12)))  # stays, and pins the heap
    held.clear()
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_freed_blocks_between_small_ones_that_stay_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "settle"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 24
