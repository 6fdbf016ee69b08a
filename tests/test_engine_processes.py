"""Several processes share the shards of a run, and what ends one of them ends no run.

Fails if: a shard is lost, done twice without need, or given to a dead process; a process that dies isn't
replaced; shards that kill whoever works on them are tried for ever; an error of a worker arrives as another
one; processes outlive the run; the files of a run differ from those of a single process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from finescope.cli import main
from finescope.corpus.plan import Shard
from finescope.errors import FineScopeError, InputError
from finescope.workflow.engines.processes import Processes
from support.cli_job import make_wild, save_job
from support.crew_work import Numbering
from support.run_files import contents, curated, small_shards

SHARDS = [Shard(10 * number, 10, "", number) for number in range(7)]


def begun(folder: Path) -> dict[int, int]:
    counts: dict[int, int] = {}
    for path in folder.iterdir():
        number = int(path.name.partition("-")[0])
        counts[number] = counts.get(number, 0) + 1
    return counts


def test_every_shard_is_done_once_by_processes_that_share_the_threads(tmp_path: Path) -> None:
    done = list(Processes(2).over(Numbering(tmp_path), SHARDS))
    assert sorted(number for number, _, _ in done) == list(range(7))
    assert begun(tmp_path) == dict.fromkeys(range(7), 1)
    assert os.getpid() not in {process for _, process, _ in done}
    assert {threads for _, _, threads in done} == {"1"} or os.cpu_count() != 2
    for _, process, _ in done:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_the_shard_of_a_killed_process_is_done_by_another(tmp_path: Path) -> None:
    done = list(Processes(2).over(Numbering(tmp_path, kills=((2, 1), (6, 2))), SHARDS))
    assert sorted(number for number, _, _ in done) == list(range(7))
    assert begun(tmp_path) == {**dict.fromkeys(range(7), 1), 2: 2, 6: 3}


def test_a_shard_that_kills_whoever_has_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(FineScopeError, match=r"rows 20 to 29 ended 3 workers.*killed by signal 9.*--workers"):
        list(Processes(1).over(Numbering(tmp_path, kills=((2, 99),)), SHARDS))
    with pytest.raises(FineScopeError, match="3 workers ended while they loaded"):
        list(Processes(1).over(Numbering(tmp_path, loads=False), SHARDS))


def test_an_error_of_a_worker_is_the_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 30 is bad") as caught:
        list(Processes(2).over(Numbering(tmp_path, refuses=3), SHARDS))
    assert "in _do" in str(caught.value.__cause__), "where it was raised is told"


def test_processes_end_with_whoever_gives_the_work(tmp_path: Path) -> None:
    results = Processes(1).over(Numbering(tmp_path), SHARDS)
    _, process, _ = next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from finescope.workflow.engines.processes import Processes\n"
        "from test_engine_processes import SHARDS, Numbering\n"
        f"for done in Processes(1).over(Numbering(Path({str(tmp_path)!r})), SHARDS):\n"
        "    print(done[1], flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
    ) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def test_a_run_of_two_processes_leaves_the_files_of_one(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    curated(job, tmp_path / "one")
    curated(job, tmp_path / "two", engine=Processes(2))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_embed_alone_takes_workers(job: Path, tmp_path: Path) -> None:
    curated(job, tmp_path / "trained")
    for name, more in (("one", []), ("two", ["--workers", 2])):
        arguments = [
            "embed", "--model", job / "model", "--layer", "layers.0", "--sae", tmp_path / "trained/sae",
            "--corpus", job / "corpus.jsonl", "--out", tmp_path / name, "--device", "cpu", *more,
        ]  # fmt: skip
        done = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_activations_too_large_for_the_dtype_are_told_by_workers_too(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an autoencoder that is given; all shards are made again in bfloat16, as by one process."""
    small_shards(monkeypatch)
    wild = save_job(tmp_path / "wild", animals=20, sky=40)
    make_wild(wild / "model")
    curated(job, tmp_path / "trained")
    options: dict[str, Any] = {"sae_path": str(tmp_path / "trained/sae"), "sinks": "keep"}
    curated(wild, tmp_path / "here", **options)
    curated(wild, tmp_path / "there", engine=Processes(2), **options)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert b'"activation_dtype": "bfloat16"' in (tmp_path / "there/codes/corpus/manifest.json").read_bytes()
