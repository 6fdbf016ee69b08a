"""The engine's kernels outside of torch: the bounds of every screen, and every access to memory.

A bound that is a little too small almost never shows in results, and neither does a read past the end of a
row. So the kernels are compiled into a program of their own, with AddressSanitizer and UBSan, which compares
every screened score with exact arithmetic and reads from arrays that end where they should.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import build_native  # noqa: E402

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-O2",), ("-O1", *SANITIZE)], ids=["plain", "sanitized"])
def test_kernels(flags: tuple[str, ...], tmp_path: Path) -> None:
    try:
        plan = build_native.make_plan("cpu", ROOT)
    except build_native.BuildError as error:
        pytest.skip(str(error))
    sources = [
        (source.path, source.flags)
        for source in plan.targets[0].sources
        if source.path.parent.name == "cpu" and source.path.stem.startswith(("topk", "isa"))
    ]
    sources.append((Path(__file__).with_name("engine_host.cpp"), ()))
    shared = [flag for flag in plan.flags if flag not in ("-O3", "-DNDEBUG")]

    def compiled(source: tuple[Path, tuple[str, ...]]) -> str:
        path, own = source
        made = str(tmp_path / f"{path.stem}.o")
        command = [*plan.compiler, *shared, *own, *flags, "-c", str(path), "-o", made]
        subprocess.run(command, check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    program = str(tmp_path / "engine_host")
    subprocess.run([*plan.compiler, *objects, *flags, "-pthread", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
