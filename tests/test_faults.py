"""Faults of a run with several processes: after each the same command gives the bytes of one without.

Fails if: a driver that is killed leaves anything that the next one takes for its own; two drivers share a
folder; a full disk, or rows that can't be read for a moment, in one of the processes loses more than itself;
a clock that is set decides anything.
"""

from __future__ import annotations

import errno
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.corpus.plan import Shard, ShardReader
from finescope.corpus.row import Row
from finescope.embeddings.embedder import Embedder
from finescope.errors import StoreError
from finescope.storage.lock import FolderLock
from finescope.workflow.engines import crew
from finescope.workflow.engines.processes import Processes
from finescope.workflow.stages import embed
from finescope.workflow.stages.embed import EmbedWork
from support.accidents import finescope, killed
from support.run_files import contents, curated, job_of

DIES = """
    from finescope.storage.shards import ShardWriter
    real, seen = ShardWriter.adopt, []
    def adopt(self, number, entry):
        seen.append(number)
        if len(seen) == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, number, entry)
    ShardWriter.adopt = adopt
"""


pytestmark = pytest.mark.usefixtures("shards_are_small")


def curate(config: Path) -> Result:
    return CliRunner().invoke(main, ["curate", "--config", str(config), "--workers", "2"])


def saved(job: Path, out: Path) -> Path:
    config = out.with_name("job.yaml")
    config.write_text(job_of(job, out).to_yaml())
    return config


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_driver_that_is_killed_is_started_again(job: Path, one: Path, tmp_path: Path, at: int) -> None:
    out = tmp_path / "run"
    config = saved(job, out)
    assert killed(finescope("curate", "--config", config, "--workers", 2, before=DIES.format(at=at)))
    assert list((out / "codes/corpus").glob("shard-*"))
    done = curate(config)
    assert done.exit_code == 0, done.stderr
    assert contents(out) == contents(one)


def test_of_two_drivers_the_second_is_refused_by_name(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with FolderLock(out):
        done = curate(saved(job, out))
    assert done.exit_code == 1
    assert f"another run is writing to {out}; wait for it" in done.stderr
    assert list(out.iterdir()) == []


def test_who_is_refused_has_said_nothing_in_the_folder(job: Path, one: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    out.mkdir()
    arguments = [
        "embed", "--model", job / "model", "--layer", "layers.0", "--sae", one / "sae", "--workers", 2,
        "--corpus", job / "corpus.jsonl", "--out", out, "--device", "cpu",
    ]  # fmt: skip
    with FolderLock(out):
        done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 1
    assert f"another run is writing to {out}" in done.stderr
    assert list(out.iterdir()) == []


class FullDisk(EmbedWork):
    """Work that meets a medium which takes no more than some bytes of a file."""

    def load(self) -> Embedder:
        found = super().load()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return found


def test_a_full_disk_in_a_worker_is_told_and_what_is_done_stays(
    job: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(embed, "EmbedWork", FullDisk)
        with pytest.raises(StoreError, match=r"can't write .*shard-.*the file-size limit is.*make room"):
            curated(job, out, engine=Processes(1))
    assert not list(out.rglob("*.tmp"))
    curated(job, out, engine=Processes(1))
    assert contents(out) == contents(one)


class Flaky(EmbedWork):
    """Work whose rows can't be read at the first try, in any process."""

    def load(self) -> Embedder:
        found = super().load()
        reader: Any = found._reader
        real, folder = reader.read, self.order.files.directory

        def read(shard: Any) -> Any:
            try:
                (folder / f"tried-{shard.number}").touch(exist_ok=False)
            except FileExistsError:
                return real(shard)
            raise OSError(errno.EIO, "Input/output error")

        reader.read = read
        return found


def test_rows_that_cannot_be_read_for_a_moment_end_no_run(
    job: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "PAUSE", 0.01)
    monkeypatch.setattr(embed, "EmbedWork", Flaky)
    out, said = tmp_path / "run", list[str]()
    curated(job, out, engine=Processes(2, say=said.append))
    tried = list((out / "codes/corpus").glob("tried-*"))
    assert len(tried) == len(said) == 4
    for path in tried:
        path.unlink()
    assert contents(out) == contents(one)


class FailingReads:
    """Fails the first reads of each shard in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, times: int) -> None:
        self.begun: list[int] = []
        real = ShardReader.read

        def read(reader: ShardReader, shard: Shard) -> list[Row]:
            self.begun.append(shard.number)
            if self.begun.count(shard.number) <= times:
                raise OSError(errno.EIO, "Input/output error")
            return real(reader, shard)

        patch.setattr(ShardReader, "read", read)


def test_one_process_and_a_task_of_an_array_try_again_too(
    job: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "PAUSE", 0.01)
    task = saved(job, tmp_path / "task")
    assert CliRunner().invoke(main, ["plan", "--config", str(task)]).exit_code == 0
    reads = FailingReads(monkeypatch, times=2)
    curated(job, tmp_path / "run")
    assert sorted(reads.begun) == sorted([0, *3 * list(range(4))]), "and the targets"
    assert contents(tmp_path / "run") == contents(one)
    reads.begun.clear()
    done = CliRunner().invoke(main, ["curate", "--config", str(task), "--shard", "1/1"])
    assert "4 shards embedded" in done.stdout
    assert done.stderr.count("it is tried again in ") == 8


def test_one_process_gives_up_with_the_error_itself(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "PAUSE", 0.01)
    reads = FailingReads(monkeypatch, times=3)
    with pytest.raises(OSError, match="Input/output error") as caught:
        curated(job, tmp_path / "run")
    assert reads.begun == 3 * [0]
    assert caught.value.__cause__ is None


def test_clocks_that_are_set_decide_nothing(
    job: Path, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, random.Random(1)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e6, 1e6))
    curated(job, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(one)
