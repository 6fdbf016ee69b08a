"""Without native objects (hidden, stale, broken, missing) everything works, quietly, and the reason is kept.

Most users who report "it is slow" are in one of these states, so each must be told apart by its words.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import finescope
from finescope.ops import native

SCRIPT = """
import json, torch, finescope.ops
from finescope.ops import native
torch.manual_seed(5)
B, K, F, D = 17, 6, 40, 33
values, indices = torch.randn(B, K), torch.randint(0, F, (B, K))
weight, bias, rows = torch.randn(F, D), torch.randn(D), torch.randn(B, D)
op = torch.ops.finescope
exact = [op.sparse_decode(values, indices, weight, bias), op.sampled_dot(rows, indices, weight)]
close = [op.scatter_rows(values, indices, rows, F), op.scatter_values(values, indices, F)]
try:
    op.sparse_decode(values, indices + F, weight, None)
    error = "none"
except IndexError as caught:
    error = "IndexError"
print(json.dumps({
    "exact": [tensor.numpy().tobytes().hex() for tensor in exact],
    "close": [tensor.flatten().tolist() for tensor in close],
    "error": error,
    "status": native.status(),
}))
"""


def run(folder: Path | None = None, **environment: str) -> dict[str, Any]:
    """Run the script in a fresh process, with the package from ``folder`` if given."""
    root = folder or Path(finescope.__file__).parent.parent
    settings = {**os.environ, "PYTHONPATH": str(root), "FINESCOPE_NATIVE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=settings,
        cwd=root,  # python -c looks in its own folder first
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1, done.stdout
    return json.loads(done.stdout)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without native objects; the source of the copy is left alone."""
    source = Path(finescope.__file__).parent
    shutil.copytree(
        source, tmp_path / "finescope", ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    )
    return tmp_path


MODULE = "_C" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
OBJECT = "libfinescope.so"


@pytest.mark.requires_native
def test_hidden_gives_the_same_answers() -> None:
    with_native, without = run(), run(FINESCOPE_NATIVE="0")
    assert with_native["status"]["cpu"]["loaded"]
    assert not without["status"]["cpu"]["loaded"]
    assert without["status"]["cpu"]["reason"] == "hidden by FINESCOPE_NATIVE=0"
    assert without["exact"] == with_native["exact"]
    for left, right in zip(without["close"], with_native["close"], strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-6)
    assert without["error"] == with_native["error"] == "IndexError"


def test_not_built(package: Path) -> None:
    status = run(package)["status"]["cpu"]
    assert status["reason"] == "not built: no compiled object is installed"
    assert "FINESCOPE_BUILD=cpu" in status["remedy"]


def test_reason_of_the_build_is_repeated(package: Path) -> None:
    record = {"mode": "auto", "built": [], "skipped": {"cpu": "no C++ compiler found"}}
    (package / "finescope/_build.json").write_text(json.dumps(record))
    assert run(package)["status"]["cpu"]["reason"] == "not built: no C++ compiler found"


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_broken_record_is_no_error(package: Path, text: str) -> None:
    (package / "finescope/_build.json").write_text(text)
    assert "not built" in run(package)["status"]["cpu"]["reason"]


def test_built_for_another_python(package: Path) -> None:
    (package / "finescope/_C.cpython-27-none.so").write_bytes(b"x")
    (package / "finescope" / OBJECT).write_bytes(b"x")
    assert run(package)["status"]["cpu"]["reason"] == "built for another Python: _C.cpython-27-none.so"


@pytest.mark.parametrize("old", [OBJECT, MODULE])
@pytest.mark.parametrize("stamp", [b"", b"finescope-operations=0;"])
def test_stale_object_is_not_loaded(package: Path, old: str, stamp: bytes) -> None:
    fresh = f"finescope-operations={native.OPERATIONS_VERSION};".encode()
    for name in (OBJECT, MODULE):
        content = b"\x7fELF" + (stamp if name == old else fresh) + b"\0" * 100
        (package / "finescope" / name).write_bytes(content)
    status = run(package)["status"]["cpu"]
    assert f"{old} is stale" in status["reason"]
    assert f"needed {native.OPERATIONS_VERSION}" in status["reason"]


@pytest.mark.parametrize("content", ["truncated", "empty"])
@pytest.mark.parametrize("broken", [OBJECT, MODULE])
def test_broken_object_is_a_reason(package: Path, broken: str, content: str) -> None:
    stamp = f"finescope-operations={native.OPERATIONS_VERSION};".encode()
    data = b"\x7fELF" + stamp + b"\0" * 100 if content == "truncated" else b""
    for name in (OBJECT, MODULE):
        whole = Path(finescope.__file__).parent / name
        if name != broken and whole.exists():
            shutil.copy2(whole, package / "finescope" / name)
        else:
            (package / "finescope" / name).write_bytes(data)
    status = run(package)["status"]["cpu"]
    assert not status["loaded"]
    assert "cannot be loaded" in status["reason"]
    assert "reinstall" in status["remedy"]


def test_stamp_matches_the_source() -> None:
    header = Path(finescope.__file__).parent.parent / "csrc/version.h"
    if not header.exists():
        pytest.skip("not a checkout")
    assert f"#define FINESCOPE_OPERATIONS_VERSION {native.OPERATIONS_VERSION}\n" in header.read_text()
