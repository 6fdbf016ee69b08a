"""What Ray's dashboard sees of a run: shards by state, failures, rows and tokens.

Read from where Prometheus reads it, of a real cluster of this machine; which takes Ray's metrics
(``pip install 'ray[default]'``). Fails if: a node doesn't show them; shards that were lost are counted as
done, or rows twice; what a run leaves behind says that it is still at work.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finescope.corpus.plan import Shard
from finescope.workflow.engines.ray import Ray
from support.crew_work import Numbering

SHARDS = [Shard(10 * number, 10, "", number) for number in range(5)]


@dataclass(frozen=True)
class Read(Numbering):
    """Work whose results have tokens: a hundred a shard."""

    @staticmethod
    def tokens(result: tuple[int, int, str]) -> int:
        return 100


def shown(port: int) -> dict[str, float]:
    """Return our metrics that a node shows, by name and state."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^ray_(finescope_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        state = re.search(r'state="(\w+)"', labels)
        found[f"{name} {state[1]}" if state else name] = float(value)
    return found


def until(holds: Callable[[dict[str, float]], bool], port: int) -> dict[str, float]:
    """Return what a node shows once something holds, or after a minute."""
    end = time.monotonic() + 60
    while not holds(found := shown(port)) and time.monotonic() < end:
        time.sleep(0.5)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_shows_them_as_long_as_the_run_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    ray = pytest.importorskip("ray", reason="ray isn't installed (pip install 'finescope[ray]')")
    for part in ("opencensus", "prometheus_client"):
        pytest.importorskip(part, reason="Ray's metrics aren't installed (pip install 'ray[default]')")
    options: dict[str, Any] = {"_system_config": {"metrics_report_interval_ms": 500}}
    ray.init("local", num_cpus=1, object_store_memory=100 << 20, log_to_driver=False, **options)
    try:
        (node,) = ray.nodes()
        port = node["MetricsExportPort"]
        results = Ray(1, device="cpu").over(Read(tmp_path, kills=((1, 1),)), SHARDS)
        done = [next(results) for _ in range(3)]
        assert until(lambda found: found.get("finescope_shards done") == 3, port) == {
            "finescope_shards waiting": 2,
            "finescope_shards running": 0,
            "finescope_shards done": 3,
            "finescope_shard_failures_total": 1,
            "finescope_rows_total": 30,
            "finescope_tokens_total": 300,
        }
        done += results
        assert sorted(number for number, _, _ in done) == list(range(5))
        after = until(lambda found: found.get("finescope_shards done") == 5, port)
        assert {name: after[f"finescope_{name}"] for name in ("shards waiting", "rows_total")} == {
            "shards waiting": 0,
            "rows_total": 50,
        }
    finally:
        ray.shutdown()
