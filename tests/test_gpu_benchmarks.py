"""The GPU benchmarks end with a table whatever fails on the way: nobody watches them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import finescope
from benchmarks import truth
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import dense, timing

ROOT = Path(finescope.__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks/gpu").exists(), reason="not a checkout")


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    return timing.Bench("cpu", True, tmp_path / "record.json", 30)


def options(out: Path, *only: str, seconds: float = 60) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", tiny=True, seconds=seconds, only=list(only), out=out)


def test_a_peer_that_fails_is_reported_and_the_others_are_timed(bench: Any) -> None:
    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    medians = bench.measure("work", {"ours": lambda: time.sleep(0.001), "peer": fails}, limit=0.1)
    bench.compare("work", medians, "ours", {"peer": 2.0})
    record = json.loads(bench.path.read_text())
    assert medians["ours"] >= 0.001
    assert record["timings"][0]["failed"] == {
        "peer": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 TiB"
    }
    assert record["ratios"] == [{"work": "work", "against": "peer", "ratio": None, "target": 2.0}]


def test_the_time_of_a_call_is_broken_down(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(200, 200)
    bench.breakdown("products", lambda: [x @ x for _ in range(3)])
    found = {kernel["kernel"]: kernel for kernel in bench.record["breakdowns"]["products"]}
    assert found["aten::mm"]["count"] == 3
    assert found["aten::mm"]["ms"] > 0

    def refuses(**_: Any) -> None:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(timing, "profile", refuses)
    bench.breakdown("more", lambda: None)
    assert json.loads(bench.path.read_text())["notes"] == [
        "more: no breakdown: RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
    ]


def test_wrong_results_are_recorded_as_failed(bench: Any) -> None:
    exact = torch.rand(3, 50, dtype=torch.float64)
    scores, ids = torch.topk(exact, 5)
    assert bench.check("right", lambda: truth.check_topk(scores.float(), ids, exact))
    worse = ids.clone()
    worse[1, 4] = int(exact[1].argmin())
    assert not bench.check("wrong row", lambda: truth.check_topk(scores.float(), worse, exact))
    twice = ids.clone()
    twice[0, 1] = twice[0, 0]
    assert not bench.check("row twice", lambda: truth.check_topk(scores.float(), twice, exact))
    assert not bench.check("bytes", lambda: truth.same_results((scores,), (scores + 1e-9,)))
    assert bench.record["checks"]["right"] == "passed"
    assert bench.record["checks"]["wrong row"].startswith("failed: AssertionError")


def cosine_order(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> list[list[int]]:
    return torch.topk(queries @ corpus.T, k).indices.tolist()  # type: ignore[no-any-return]


def unit_rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 24, generator=generator))


def test_flashlib_ranks_unit_rows_as_the_cosine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that keeps its contract: squared distances ascending, and the rows."""

    def flash_knn(x: torch.Tensor, c: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.topk(torch.cdist(x, c).square(), k, largest=False)
        return found.values, found.indices.int()

    monkeypatch.setitem(sys.modules, "flashlib", SimpleNamespace(flash_knn=flash_knn))
    queries, corpus = unit_rows(7, 0), unit_rows(300, 1)
    _, ids = dense.SEARCHES["flashlib"](queries, corpus, 5)()
    assert ids.tolist() == cosine_order(queries, corpus, 5)


@pytest.mark.parametrize("new", [True, False], ids=["0.3", "before"])
def test_flash_kmeans_is_given_a_batch_of_one_with_its_squares(
    monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    def assign(x: torch.Tensor, centroids: torch.Tensor, x_sq: torch.Tensor, **options: str) -> torch.Tensor:
        assert options == ({"backend": "triton"} if new else {})
        assert x.shape[:2] == x_sq.shape
        crossed = torch.einsum("bnd,bkd->bnk", x, centroids)
        squares = centroids.square().sum(-1)[:, None]
        return (x_sq[..., None] + squares - 2 * crossed).argmin(-1)

    for name in ("flash_kmeans", "flash_kmeans.kmeans_api", "flash_kmeans.assign_euclid_triton"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    if new:
        sys.modules["flash_kmeans.kmeans_api"].euclid_assign = assign
    else:
        sys.modules["flash_kmeans.assign_euclid_triton"].euclid_assign_triton = assign
    points, centres = unit_rows(200, 2), unit_rows(9, 3)
    ids = dense.NEAREST["flash-kmeans"](points, centres, 1)()
    assert ids.tolist() == [[row[0] for row in cosine_order(points, centres, 1)]]


def test_a_library_that_is_not_installed_is_noted_and_others_take_part(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashlib", None)
    queries = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    known = {"flashlib": dense.flashlib, "other": lambda queries, corpus, k: lambda: k}
    found = dense.installed(bench, known, queries, None, 3)  # type: ignore[arg-type]
    assert (list(found), found["other"]()) == (["other"], 3)
    (note,) = bench.record["notes"]
    assert note.startswith("flashlib takes no part: ModuleNotFoundError")
    assert dense.peers(dense.NEAREST, unit_rows(1, 0), unit_rows(2, 0), 1) == (
        {},
        dict.fromkeys(("faiss-gpu", "cuVS", "flashlib", "flash-kmeans"), "needs a GPU"),
    )


def test_a_command_that_hangs_is_stopped_with_what_it_started() -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    began = time.monotonic()
    status, output = gpu.run([sys.executable, "-c", code], 3, echo=False)
    assert status is None
    assert time.monotonic() - began < 30
    for _ in range(50):
        if not _alive(int(output)):
            break
        time.sleep(0.1)
    assert not _alive(int(output))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that was killed and not yet collected is not alive.
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_a_section_that_breaks_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"finished": True, "checks": {"search": "passed"}, "ratios": [], "notes": ["fast"]}

    def section(command: list[str], seconds: float, echo: bool = True) -> tuple[int | None, str]:
        name = command[command.index("--section") + 1]
        record = Path(command[command.index("--record") + 1])
        if name == "encode":
            return -11, "Segmentation fault"
        if name == "dense":
            record.write_text(json.dumps({**good, "finished": False}))
            return None, "slow"
        if name == "train":
            raise OSError("no more processes")
        record.write_text(json.dumps(good))
        return 0, ""

    monkeypatch.setattr(gpu, "run", section)
    assert gpu.Run(options(tmp_path, "encode", "dense", "train", "sparse")).all() == 1
    (path,) = tmp_path.glob("*-cpu-tiny.json")
    stages = json.loads(path.read_text())["stages"]
    assert stages["encode"]["outcome"] == "failed: exit status -11"
    assert stages["encode"]["output"] == "Segmentation fault"
    assert stages["dense"]["outcome"] == "stopped: out of time"
    assert stages["dense"]["checks"] == {"search": "passed"}
    assert stages["train"]["outcome"] == "failed: OSError: no more processes"
    assert stages["sparse"]["outcome"] == "finished"
    assert "| sparse: search equals float64 | passed |" in capsys.readouterr().out


def test_no_time_left_skips(tmp_path: Path) -> None:
    assert gpu.Run(options(tmp_path, "encode", seconds=1)).all() == 0
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["stages"]["encode"]["outcome"] == "skipped: no time left"


def test_the_table_says_what_was_reached() -> None:
    ratios = [
        {"work": "a", "against": "p", "ratio": 2.5, "target": 2.0},
        {"work": "b", "against": "p", "ratio": 1.5, "target": 2.0},
        {"work": "c", "against": "p", "ratio": None, "target": 2.0},
        {"work": "d", "against": "p", "ratio": 9.0, "target": None},
    ]
    text, failed = gpu.summary({"stages": {"s": {"outcome": "finished", "ratios": ratios}}})
    assert not failed
    verdicts = [
        line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| ") and "| p |" in line
    ]
    assert verdicts == ["reached", "missed", "skipped", ""]
    assert gpu.summary({"stages": {"s": {"outcome": "finished", "checks": {"x": "failed: no"}}}})[1]


@pytest.mark.slow
def test_everything_in_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "ceilings", "dense", "sparse", "streaming"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (path,) = tmp_path.glob("*.json")
    stages = json.loads(path.read_text())["stages"]
    assert {stage["outcome"] for stage in stages.values()} == {"finished"}
