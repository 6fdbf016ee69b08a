"""How far a run is, told from its files alone.

Fails if: finished, running, failed and silent work are taken for one another; rates, time left or the slowest
worker are wrong; asking needs the run's process, or leaves anything behind; a finished run leaves traces.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from finescope.cli import main
from finescope.corpus.plan import Shard
from finescope.embeddings.embedder import Embedder
from finescope.errors import StoreError
from finescope.progress import Task
from finescope.workflow import pulse
from finescope.workflow.pulse import Beat, Pulse, announce
from finescope.workflow.status import SILENT, status
from support.cli_job import save_job
from support.run_files import curated, small_shards

SHARDS = [Shard(10 * number, 10, "", number) for number in range(6)]


def said(folder: Path, beat: Beat, ago: float = 0.0) -> None:
    path = folder / "workers" / f"{beat.host}-{beat.pid}.json"
    path.write_text(json.dumps(asdict(beat)))
    os.utime(path, (time.time() - ago,) * 2)


def in_work(run: Path) -> Path:
    """A store of six shards: two finished, two at work, one failed, one left behind."""
    folder = run / "codes/corpus"
    announce(folder, SHARDS)
    (folder / "manifest.json").write_text(json.dumps({"shards": [{"rows": 10}]}))
    (folder / "shard-00004.json").write_text(json.dumps({"rows": 10}))
    fast = {"done": 5, "tokens": 50, "finished": 10, "finished_tokens": 250, "seconds": 3.0}
    said(folder, Beat("fast", 1, shard=1, first=10, rows=10, **fast))
    said(folder, Beat("slow", 2, shard=2, first=20, rows=10, done=4, tokens=80, seconds=4.0))
    said(folder, Beat("bad", 3, shard=3, first=30, rows=10, seconds=1.0, error="InputError: row 33 is bad"))
    said(folder, Beat("mended", 4, shard=4, seconds=1.0, error="StoreError: the disk is full"))
    said(folder, Beat("gone", 5, shard=5, done=9, seconds=9.0), ago=SILENT + 5)
    said(folder, Beat("waiting", 6, finished=10, seconds=5.0))
    return folder


def test_work_is_told_apart(tmp_path: Path) -> None:
    in_work(tmp_path)
    found = status(tmp_path)
    assert (found.shards, found.rows, found.done, found.done_rows) == (6, 60, 2, 20 + 5 + 4)
    assert [beat.host for beat in found.running] == ["fast", "slow"]
    assert [beat.host for beat in found.failed] == ["bad"]
    assert [beat.host for beat in found.silent] == ["gone"]
    assert found.rate == 15 / 3 + 4 / 4
    assert found.token_rate == 300 / 3 + 80 / 4
    assert found.slowest is not None
    assert found.slowest.host == "slow"
    assert found.seconds_left == (60 - 29) / 6


def test_it_is_said_to_people_and_to_machines(tmp_path: Path) -> None:
    folder = in_work(tmp_path)
    before = sorted(folder.rglob("*"))
    shown = CliRunner().invoke(main, ["status", str(tmp_path)], catch_exceptions=False).stdout
    assert "embedding: 2 of 6 shards done, 2 running, 1 failed; 29 of 60 rows" in shown
    assert "6 rows/s, 120 tokens/s, 5.2 s left" in shown
    assert "slowest: slow:2, 1 rows/s" in shown
    assert "failed: bad:3 at shard 3: InputError: row 33 is bad" in shown
    assert "silent for two minutes: gone:5 at shard 5" in shown
    line = CliRunner().invoke(main, ["status", str(folder), "--json"], catch_exceptions=False).stdout
    plain = json.loads(line)
    assert {name: plain[name] for name in ("shards", "shards_done", "rows_per_second", "slowest")} == {
        "shards": 6, "shards_done": 2, "rows_per_second": 6.0, "slowest": "slow:2",
    }  # fmt: skip
    assert plain["tokens_per_second"] == 120.0
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(StoreError, match="holds no run"):
        status(tmp_path / "codes")


def test_it_is_said_again_until_all_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = in_work(tmp_path)
    waited: list[float] = []

    def meanwhile(seconds: float) -> None:
        waited.append(seconds)
        for number in range(1, min(2 * len(waited), 5) + 1):
            (folder / f"shard-{number:05}.json").write_text(json.dumps({"rows": 10}))

    monkeypatch.setattr(time, "sleep", meanwhile)
    words = ["status", str(tmp_path), "--json", "--every", "7.5"]
    lines = CliRunner().invoke(main, words, catch_exceptions=False).stdout.splitlines()
    assert [json.loads(line)["shards_done"] for line in lines] == [2, 4, 5, 6]
    assert waited == [7.5] * 3
    refused = CliRunner().invoke(main, ["status", str(tmp_path), "--every", "0"])
    assert refused.exit_code == 2
    assert "--every" in refused.stderr


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_clocks_that_are_set_or_differ_make_nobody_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Of this machine, whose clock was set after all had spoken, and of others, where it is another time."""
    folder = tmp_path / "codes/corpus"
    announce(folder, SHARDS)
    boot, now = pulse._boot(), time.monotonic()
    said(folder, Beat("here", 1, shard=1, boot=boot, clock=now - 3), ago=jump)
    said(folder, Beat("dead", 2, shard=2, boot=boot, clock=now - SILENT - 60), ago=jump)
    said(folder, Beat("there", 3, shard=3, boot="another", clock=5.0))
    said(folder, Beat("gone", 4, shard=4, boot="another", clock=5.0), ago=SILENT + 60)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    found = status(tmp_path)
    assert [beat.host for beat in found.running] == ["here", "there"]
    assert [beat.host for beat in found.silent] == ["dead", "gone"]


class Told:
    """In place of an embedder."""

    progress = None

    def __init__(self, folder: Path, entry: Any = None) -> None:
        self.order = SimpleNamespace(files=SimpleNamespace(directory=folder))
        self.entry = SimpleNamespace(tokens=70) if entry is None else entry

    def __call__(self, shard: Shard) -> tuple[int, Any]:
        if isinstance(self.entry, Exception):
            raise self.entry
        return shard.number, self.entry


def test_processes_of_one_name_and_number_do_not_speak_for_each_other(tmp_path: Path) -> None:
    for _ in range(2):
        Pulse(Told(tmp_path))(SHARDS[0])  # type: ignore[arg-type]
    assert [(beat.finished, beat.finished_tokens) for beat, _ in pulse.beats(tmp_path)] == [(10, 70)] * 2


def test_who_fails_and_tries_again_is_not_failed(tmp_path: Path) -> None:
    told = Told(tmp_path, OSError("broken"))
    speaker = Pulse(told)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="broken"):
        speaker(SHARDS[0])
    ((beat, _),) = pulse.beats(tmp_path)
    assert beat.error == "OSError: broken"
    told.entry = SimpleNamespace(tokens=70)
    speaker(SHARDS[0])
    ((beat, _),) = pulse.beats(tmp_path)
    assert (beat.error, beat.finished) == ("", 10)


def test_words_that_cannot_be_written_stop_no_work(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("in the way")
    assert Pulse(Told(tmp_path))(SHARDS[3])[0] == 3  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bad row"):
        Pulse(Told(tmp_path, ValueError("bad row")))(SHARDS[3])  # type: ignore[arg-type]


def test_the_bar_moves_while_others_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SECONDS", 0.01)
    announce(tmp_path, SHARDS)
    said(tmp_path, Beat("earlier", 1, shard=0, done=9, tokens=99))
    heard: list[tuple[int, int]] = []

    def results() -> Iterator[Any]:
        said(tmp_path, Beat("a", 1, shard=1, done=4, tokens=40))
        said(tmp_path, Beat("b", 2, shard=2, done=3, tokens=30))
        wait_for((7, 70))
        yield 1, None
        said(tmp_path, Beat("a", 1, shard=3, done=1, tokens=8))
        said(tmp_path, Beat("c", 3, shard=2, done=2, tokens=20))  # goes on where b was lost
        wait_for((4, 38))
        yield 2, None

    def wait_for(wanted: tuple[int, int]) -> None:
        for _ in range(3000):
            if wanted in heard:
                return
            time.sleep(0.01)
        raise AssertionError(heard)

    told = pulse.followed(results(), tmp_path, lambda rows, tokens: heard.append((rows, tokens)))
    assert [number for number, _ in told] == [1, 2]


def test_the_bar_of_a_run_with_workers_is_told_of_rows_in_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SECONDS", 0.01)
    small_shards(monkeypatch)
    job, shown = save_job(tmp_path / "job", animals=20, sky=40), list[float]()
    real = Task.update

    def update(self: Task, done: float, *more: Any) -> None:
        if self.name == "embedding corpus":
            shown.append(done)
        real(self, done, *more)

    class Slow:
        """An engine whose worker says that it is at the second shard while the first is the only one done."""

        def over(self, work: Any, shards: Any) -> Any:
            folder, work.here = work.order.files.directory, None
            do = work.open()
            yield do(shards[0])
            said(folder, Beat("there", 1, shard=1, done=5, tokens=50))
            for _ in range(3000):
                if 16 + 5 in shown:
                    break
                time.sleep(0.01)
            yield from map(do, shards[1:])

    monkeypatch.setattr(Task, "update", update)
    curated(job, tmp_path / "out", engine=Slow())
    assert 16 + 5 in shown
    assert shown == sorted(shown)


def test_a_run_says_how_far_it_is_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    monkeypatch.setattr(pulse, "SECONDS", 0.0)
    job, out = save_job(tmp_path / "job", animals=20, sky=40), tmp_path / "out"
    seen: list[Any] = []
    real = Embedder.embed

    def embed(self: Embedder, shard: Shard, rows: Any) -> Any:
        if shard.number == 2 and not seen:
            seen.append(status(out))
        found = real(self, shard, rows)
        if shard.number == 3:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", embed)
        with pytest.raises(KeyboardInterrupt):
            curated(job, out)
    (while_at_it,) = seen
    assert (while_at_it.shards, while_at_it.rows, while_at_it.done, while_at_it.done_rows) == (4, 60, 2, 32)
    assert [beat.shard for beat in while_at_it.running] == [2]
    assert while_at_it.rate > 0
    assert while_at_it.stages == ["activations", "sinks", "train"]
    stopped = status(out)
    assert stopped.done == 4  # the last was finished, though nobody was told
    curated(job, out)
    assert status(out).stages[-1] == "score"
    assert not list(out.rglob("workers"))
