"""Losses on the way: what is replaced, tried again, or ends the run, and what is said of it.

Fails if: workers that are lost now and then while they load end a long run; a shard that can't be read for a
moment ends it, or is tried for ever; an error that will come again is waited for; the shard goes back to the
worker that has just failed while another is idle; a replaced process gets another GPU than the lost one had.
"""

from __future__ import annotations

import errno
import itertools
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from finescope.corpus import open_corpus, write_rows
from finescope.corpus.files import File
from finescope.corpus.plan import Shard, ShardReader, plan
from finescope.errors import FineScopeError, InputError, ReadError
from finescope.workflow.engines import crew, processes
from finescope.workflow.engines.processes import Processes
from support.crew_work import Numbering

SHARDS = [Shard(10 * number, 10, "", number) for number in range(6)]
BROKEN = OSError(errno.EIO, "Input/output error")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PAUSE", 0.0)


@dataclass
class Scripted:
    """A crew whose workers do as they are told.

    Attributes:
        loads: how each worker begins that is started; those after them are ready.
        shards: by number, what becomes of a shard at each time; after that it is done.
        given: the worker and the number of each shard that was begun.
        size: workers at a time.
    """

    loads: list[crew.Answer] = field(default_factory=list)
    shards: dict[int, list[crew.Answer]] = field(default_factory=dict)
    size: int = 2
    given: list[tuple[int, int]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers, self._answers = itertools.count(), dict[int, crew.Answer]()

    def run(self) -> list[Any]:
        return list(crew.at_work(self, None, SHARDS, self.size, self.said.append))

    def start(self) -> int:
        number = next(self._numbers)
        self._answers[number] = self.loads.pop(0) if self.loads else crew.Ready(f"node:{number}")
        return number

    def give(self, worker: int, task: crew.Task) -> None:
        self.given.append((worker, task.shard.number))
        fates = self.shards.get(task.shard.number)
        self._answers[worker] = fates.pop(0) if fates else crew.Done(task.shard.number)

    def answers(self, workers: Sequence[int]) -> list[tuple[int, crew.Answer]]:
        return [(worker, self._answers.pop(worker)) for worker in workers if worker in self._answers]

    def end(self, worker: int) -> None:
        self.ended.append(worker)

    def dismiss(self) -> None:
        pass


def gone() -> crew.Gone:
    return crew.Gone("was killed by signal 9")


def unread() -> crew.Failed:
    return crew.failure(BROKEN)


def test_workers_lost_now_and_then_while_they_load_end_no_run() -> None:
    ready = crew.Ready("node:x")
    found = Scripted([gone(), ready, ready, gone(), ready, gone()], {1: [gone()], 4: [gone()]})
    assert sorted(found.run()) == list(range(6))
    assert not found.loads, "all of that has happened"
    others = Scripted([ready, *(gone() for _ in range(4))])
    assert sorted(others.run()) == list(range(6))
    assert not others.loads, "one does all the shards, while those beside it are lost"
    three = Scripted([gone(), gone(), gone()])
    with pytest.raises(FineScopeError, match="3 workers ended while they loaded, one after the other"):
        three.run()


def test_what_cannot_be_read_for_a_moment_goes_to_another_worker() -> None:
    found = Scripted(shards={5: [unread(), unread()], 4: [crew.Done(4)]})
    assert sorted(found.run()) == list(range(6))
    at = [worker for worker, number in found.given if number == 5]
    assert len(at) == 3
    assert at[0] != at[1], "another is idle by then"
    assert [line for line in found.said if "shard 5, rows 50 to 59" in line] == [
        f"shard 5, rows 50 to 59: OSError: {BROKEN}, on node:{at[0]}; it is tried again in 0 s (2 of 3)",
        f"shard 5, rows 50 to 59: OSError: {BROKEN}, on node:{at[1]}; it is tried again in 0 s (3 of 3)",
    ]


def test_it_is_not_tried_for_ever_and_other_errors_are_not_tried_again() -> None:
    found = Scripted(shards={3: [unread(), unread(), unread()]})
    with pytest.raises(OSError, match="Input/output error"):
        found.run()
    assert [number for _, number in found.given].count(3) == 3
    refused = Scripted(shards={3: [crew.failure(InputError("row 30 is bad"))]})
    with pytest.raises(InputError, match="row 30 is bad"):
        refused.run()
    assert [number for _, number in refused.given].count(3) == 1
    assert refused.said == ["shard 3, rows 30 to 39: failed on node:1"]


def test_a_worker_that_cannot_load_for_a_moment_is_replaced() -> None:
    found = Scripted([unread(), crew.Ready("node:x")])
    assert sorted(found.run()) == list(range(6))
    assert found.ended == [0]
    with pytest.raises(OSError, match="Input/output error"):
        Scripted([unread(), unread(), unread()], size=1).run()
    with pytest.raises(InputError, match="no such model"):
        Scripted([crew.failure(InputError("no such model"))]).run()


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PAUSE", 5.0)
    task = crew.Task(SHARDS[0])
    assert [task.again().pause, task.again().again().pause] == [5.0, 10.0]
    slept: list[float] = []
    monkeypatch.setattr(crew.time, "sleep", slept.append)
    crew.answer(lambda shard: None, task.again())
    assert slept == [5.0]


def test_real_processes_try_again(tmp_path: Path) -> None:
    said: list[str] = []
    work = Numbering(tmp_path, unread=((2, 1), (5, 2)), kills=((1, 1),))
    done = list(Processes(2, say=said.append).over(work, SHARDS))
    assert sorted(number for number, _, _ in done) == list(range(6))
    assert len([line for line in said if "it is tried again" in line]) == 3
    (lost,) = [line for line in said if "another worker takes it" in line]
    assert "shard 1, rows 10 to 19: " in lost
    assert " was killed by signal 9; " in lost
    with pytest.raises(OSError, match="Input/output error"):
        list(Processes(2, say=said.append).over(Numbering(tmp_path, unread=((3, 99),)), SHARDS))


def test_who_replaces_a_process_has_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    visible: dict[int, str] = {}
    real: Any = subprocess.Popen

    def popen(*arguments: Any, env: dict[str, str], **options: Any) -> Any:
        process = real(*arguments, env=env, **options)
        visible[process.pid] = env["CUDA_VISIBLE_DEVICES"]
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    found = processes._Processes(Numbering(tmp_path), 3, "auto")
    try:
        workers = [found.start() for _ in range(3)]
        seen = []
        for lost in (1, 0, 1):
            workers[lost].process.kill()
            answers = found.answers([workers[lost]])
            while not isinstance(answers[-1][1], crew.Gone):  # it was ready before
                answers = found.answers([workers[lost]])
            workers[lost] = found.start()
            seen.append([visible[worker.process.pid] for worker in workers])
        assert seen == [["4", "7", "4"]] * 3
    finally:
        found.dismiss()


class Failing:
    """A file that fails once it has been read for a while."""

    def __init__(self, file: Any, error: Exception, after: int) -> None:
        self._file, self._error, self._left = file, error, after

    def read(self, size: int = -1) -> bytes:
        if self._left <= 0:
            raise self._error
        found: bytes = self._file.read(min(size, self._left) if size >= 0 else self._left)
        self._left -= len(found)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv"])
def test_a_medium_that_fails_is_told_from_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = written(tmp_path / f"rows{ending}")
    size = path.stat().st_size
    real: Callable[..., Any] = File.open
    with monkeypatch.context() as patch:
        patch.setattr(File, "open", lambda self: Failing(real(self), OSError(errno.EIO, "broken"), size // 2))
        with pytest.raises(ReadError, match=rf"rows{ending} can't be read: OSError: \[Errno 5\] broken"):
            open_corpus(path).scan()
    if ending not in (".jsonl", ".csv"):
        path.write_bytes(path.read_bytes()[: size // 2])
        with pytest.raises(InputError, match="truncated or corrupt") as caught:
            open_corpus(path).scan()
        assert not isinstance(caught.value, ReadError)


def test_a_store_that_fails_is_told_from_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/crew/a.jsonl", b'{"text": "a"}\n')
    corpus = open_corpus("memory://crew/a.jsonl")

    class Store(type(memory)):  # type: ignore[misc]
        cachable = False

        def _open(self, *_: Any, **__: Any) -> Any:
            raise error

    corpus.sources[0]._file.system = Store()  # type: ignore[attr-defined]
    try:
        for error, passing in (
            (ConnectionError("reset"), True), (TimeoutError("slow"), True), (Exception("503"), True),
            (FileNotFoundError("a"), False), (PermissionError("no"), False), (ValueError("no"), False),
        ):  # fmt: skip
            with pytest.raises(InputError, match=r"/crew/a\.jsonl can't be read") as caught:
                list(corpus)
            assert isinstance(caught.value, ReadError) is passing, error
            assert crew.failure(caught.value).passing is passing
    finally:
        memory.rm("/crew", recursive=True)


def test_a_reader_that_has_failed_begins_its_shard_anew(tmp_path: Path) -> None:
    corpus = open_corpus(written(tmp_path / "rows.jsonl"))
    shards = plan(corpus, 100)
    fails = [True]

    def rows(start: Any) -> Any:
        for number, row in enumerate(corpus.rows_from(start)):
            if number == 150 and fails:
                fails.clear()
                raise BROKEN
            yield row

    reader = ShardReader(rows)
    assert len(reader.read(shards[0])) == 100
    with pytest.raises(OSError, match="Input/output"):
        reader.read(shards[1])
    assert [row.id for row in reader.read(shards[1])] == [str(number) for number in range(100, 200)]


def written(path: Path) -> Path:
    chosen = random.Random(3)
    rows = [{"id": str(n), "text": " ".join(chosen.choices("abcdefgh", k=20))} for n in range(300)]
    if path.suffix == ".csv":
        path.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows))
    else:
        write_rows(path, rows)
    return path
