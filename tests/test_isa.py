"""Choosing an instruction set: FINESCOPE_CPU_ISA in a fresh process, set_isa in this one, wrong names.

What a user forces must be what runs, or a benchmark of it measures something else; a name that cannot be used
must be reported and must never end in an illegal instruction.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from finescope import diagnostics
from finescope.ops import native

pytestmark = pytest.mark.requires_native

CPU = native.module("cpu")
USABLE = CPU.usable_isas() if CPU is not None else []

SCRIPT = """
import json, torch, finescope.ops
from finescope.ops import native
torch.manual_seed(3)
values, indices, weight = torch.randn(7, 5), torch.randint(0, 20, (7, 5)), torch.randn(20, 37)
out = torch.ops.finescope.sparse_decode(values, indices, weight, None)
status = native.status()["cpu"]
print(json.dumps({"active": status["active"], "note": status["note"], "sum": out.numpy().tobytes().hex()}))
"""


def run(isa: str | None) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "FINESCOPE_CPU_ISA"}
    if isa is not None:
        environment["FINESCOPE_CPU_ISA"] = isa
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_each_level_forced_by_environment() -> None:
    found = [run(isa) for isa in USABLE]
    assert [one["active"] for one in found] == USABLE
    assert all(one["note"] == "" for one in found)
    assert len({one["sum"] for one in found}) == 1


def test_best_level_by_default() -> None:
    found = run(None)
    assert found["active"] == USABLE[-1]
    assert found["note"] == ""
    assert run("")["active"] == USABLE[-1]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "neon" if "neon" not in USABLE else "avx2"])
def test_unusable_name_is_reported_and_the_best_is_taken(name: str) -> None:
    found = run(name)
    assert found["active"] == USABLE[-1]
    assert f"FINESCOPE_CPU_ISA={name} is not usable here" in found["note"]
    assert f"using {USABLE[-1]}" in found["note"]
    assert all(isa in found["note"] for isa in USABLE)


def test_set_isa() -> None:
    before = CPU.active_isa()
    try:
        for isa in USABLE:
            CPU.set_isa(isa)
            assert CPU.active_isa() == isa
        with pytest.raises(ValueError, match="'sse9' is not usable here"):
            CPU.set_isa("sse9")
        assert CPU.active_isa() == USABLE[-1]
    finally:
        CPU.set_isa(before)


def test_introspection() -> None:
    assert CPU.compiled_isas()[0] == "scalar"
    assert set(USABLE) <= set(CPU.compiled_isas())
    versions = native.status()["cpu"]["versions"]
    assert versions["operations"] == native.OPERATIONS_VERSION
    for name in ("torch_headers", "compiler", "pybind11"):
        assert re.search(r"\d+\.\d+", versions[name])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert CPU.num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_info_says_what_a_newer_processor_brings() -> None:
    state = diagnostics.collect()
    isas = state["native"]["cpu"]["isas"]

    def said(usable: list[str]) -> str:
        cpu = {**state["native"]["cpu"], "usable": usable, "active": usable[-1]}
        return diagnostics.render({**state, "native": {**state["native"], "cpu": cpu}})

    for place in range(len(isas)):
        text = said(isas[: place + 1])
        assert ("a newer one has" in text) == (place + 1 < len(isas))
        assert all(f"    {isa}: " in text for isa in isas[place + 1 :])
        assert not any(f"    {isa}: " in text for isa in isas[: place + 1])
    # One that is missing below the best would bring nothing.
    assert "a newer one has" not in said([isas[0], isas[-1]])
