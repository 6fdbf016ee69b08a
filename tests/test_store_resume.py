"""A run may be killed, interrupted or run out of disk at any moment: what is listed is whole, and the next
run goes on from there to the same bytes. Foreign and changed folders are refused by name, and damaged
ones unless what is damaged can be made again by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from finescope.activations import ActivationStore, ActivationTap, store_activations
from finescope.config import SaeConfig
from finescope.corpus import Row, open_corpus
from finescope.embeddings import CodeStore, embed_rows
from finescope.errors import StoreError
from finescope.sae import SparseAutoencoder
from finescope.storage import files, shards
from finescope.storage.lock import FolderLock
from finescope.storage.shardfiles import ShardFiles
from support.tiny_models import WIDTH, make_model, make_rows, make_tokenizer

ROWS = make_rows(40, longest=12)
RECORDS = [{"id": row.id, "text": row.text} for row in ROWS]


def _tap() -> ActivationTap:
    return ActivationTap(make_model("llama"), "layers.1", tokenizer=make_tokenizer(), batch_tokens=256)


def _sae() -> SparseAutoencoder:
    torch.manual_seed(1)
    return SparseAutoencoder(WIDTH, SaeConfig(num_latents=64, k=4), seed=1)


def _embed(folder: Path, records: list[dict] = RECORDS, **options: object) -> CodeStore:
    return embed_rows(_sae(), _tap(), open_corpus(records), folder, shard_rows=8, **options)  # type: ignore[arg-type]


def _collect(folder: Path, records: list[dict] = RECORDS, **options: object) -> ActivationStore:
    return store_activations(_tap(), open_corpus(records), folder, shard_tokens=50, **options)  # type: ignore[arg-type]


RUNS = pytest.mark.parametrize("run", [_embed, _collect])


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _listed(folder: Path) -> list[str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return [name for entry in manifest["shards"] for name in (entry["file"], entry["table"])]


def _fail_at(monkeypatch: pytest.MonkeyPatch, shard: int, error: BaseException) -> list[str]:
    """Let the writing of one shard's bulk file fail half-way; return the names written before."""
    written: list[str] = []
    from safetensors import torch as safetensors_torch

    save = safetensors_torch.save_file

    def failing(tensors: dict, path: Path, metadata: dict) -> None:
        if f"shard-{shard:05d}" in str(path):
            Path(path).write_bytes(b"half")
            raise error
        written.append(Path(path).name)
        save(tensors, path, metadata)

    monkeypatch.setattr(safetensors_torch, "save_file", failing)
    return written


@RUNS
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_and_full_disk_leave_whole_shards_and_resume_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable, error: BaseException
) -> None:
    run(tmp_path / "straight")
    folder = tmp_path / "broken"
    with monkeypatch.context() as patch:
        _fail_at(patch, 2, error)
        expected = StoreError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            run(folder)
    if isinstance(error, OSError):
        assert "shard-00002.safetensors: the disk is full" in str(caught.value)
    whole = _contents(folder)
    assert not [name for name in whole if name.startswith(".")], "no temporary file, no lock"
    with pytest.raises(StoreError, match=r"unfinished \(2 shards\)"):
        (CodeStore if run is _embed else ActivationStore)(folder)
    with monkeypatch.context() as patch:
        written = _fail_at(patch, 99, error)
        run(folder)
        assert not any("shard-00000" in name or "shard-00001" in name for name in written), (
            "finished: not redone"
        )
        assert any("shard-00002" in name for name in written)
    assert _contents(folder) == _contents(tmp_path / "straight")


@RUNS
def test_a_finished_store_is_not_touched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable
) -> None:
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(ActivationTap, "batches", None)
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@RUNS
def test_another_input_is_refused_and_overwritten_when_asked(tmp_path: Path, run: Callable) -> None:
    run(tmp_path)
    changed = [*RECORDS[:-1], {"id": "new", "text": "w1"}]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"something else: corpus\.sources\[0\]\.sha256 was .*overwrite"):
        run(tmp_path, changed)
    found = run(tmp_path, changed, mode="overwrite")
    assert found.ids()[-1] == "new"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(_listed(tmp_path)) == sorted(path.name for path in tmp_path.glob("shard-*"))


def test_another_option_is_refused_by_name(tmp_path: Path) -> None:
    _embed(tmp_path)
    with pytest.raises(StoreError, match="pooling was 'mean', now 'max'"):
        _embed(tmp_path, pooling="max")
    sae = _sae()
    with torch.no_grad():
        sae.encoder.weight[3, 3] += 1e-3
    with pytest.raises(StoreError, match=r"sae\.weights was"):
        embed_rows(sae, _tap(), open_corpus(RECORDS), tmp_path, shard_rows=8)


@RUNS
@pytest.mark.parametrize("finished", [True, False])
def test_plain_rows_that_changed_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable, finished: bool
) -> None:
    def go(rows: list[Row]) -> None:
        if run is _embed:
            embed_rows(_sae(), _tap(), iter(rows), tmp_path, shard_rows=8)
        else:
            store_activations(_tap(), rows, tmp_path, shard_tokens=50)

    with monkeypatch.context() as patch:
        if not finished:
            _fail_at(patch, 2, KeyboardInterrupt())
        try:
            go(ROWS)
        except KeyboardInterrupt:
            assert not finished
    with pytest.raises(StoreError, match="rows aren't th"):
        go([ROWS[0], Row("d1", "w1 changed"), *ROWS[2:]])
    go(ROWS)


@RUNS
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "table"])
def test_damaged_shards_are_named_and_refused(tmp_path: Path, run: Callable, damage: str) -> None:
    run(tmp_path)
    name = "shard-00001.parquet" if damage == "table" else "shard-00001.safetensors"
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        data[-3] ^= 0xFF
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2])
    reader = CodeStore if run is _embed else ActivationStore
    if damage == "flipped":
        with pytest.raises(StoreError, match=f"{name} is corrupt"):
            reader(tmp_path).verify()
    else:
        with pytest.raises(StoreError, match=f"{name} (has|is missing)"):
            reader(tmp_path)
    if run is _collect:
        with pytest.raises(StoreError, match=name):
            run(tmp_path)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "shard-00003.parquet"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_damaged_shard_of_codes_is_made_again_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, gone: bool
) -> None:
    _embed(tmp_path)
    before, said = _contents(tmp_path), list[str]()
    if gone:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(before[name][:-3] + b"???")
    written = _fail_at(monkeypatch, 99, KeyboardInterrupt())
    _embed(tmp_path, remark=said.append)
    assert len(written) == 1
    assert name.partition(".")[0] in written[0]
    assert _contents(tmp_path) == before
    assert said == [f"damaged in {tmp_path}, and made again: shards {int(name[10])}"]


def test_a_shard_that_contradicts_itself_is_refused_on_reading(tmp_path: Path) -> None:
    _embed(tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    tensors, metadata = files.map_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["indices"] = tensors["indices"].int().flip(0).to(torch.uint16)
    files.write_tensors(path, tensors, metadata)
    with pytest.raises(StoreError, match=r"shard-00001\.safetensors is corrupt: latents must rise"):
        CodeStore(tmp_path).codes()


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        CodeStore(tmp_path / "none")
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        CodeStore(tmp_path)
    _collect(tmp_path / "activations")
    with pytest.raises(StoreError, match="holds finescope-activations, not finescope-codes"):
        CodeStore(tmp_path / "activations")
    (tmp_path / "manifest.json").write_text('{"format": "finescope-codes", "ver')
    with pytest.raises(StoreError, match=r"manifest\.json is truncated or corrupt"):
        CodeStore(tmp_path)


def test_two_runs_never_write_to_one_folder(tmp_path: Path) -> None:
    with (
        shards.ShardWriter(tmp_path, "finescope-codes", {}),
        pytest.raises(StoreError, match="another run is writing"),
    ):
        shards.ShardWriter(tmp_path, "finescope-codes", {})
    shards.ShardWriter(tmp_path, "finescope-codes", {}).close()


def test_processes_of_one_number_write_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers on several machines it is often 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "total.json"
    with files.atomic_path(path) as ours:
        ours.write_text("ours")
        with files.atomic_path(path) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    left = [ours, theirs, tmp_path / ".total.json.4711.tmp"]  # the last as 0.1.0 called them
    others = [tmp_path / ".total.json.swp", tmp_path / ".x.tmp"]
    for name in (*left, *others):
        name.touch()
    assert sorted(files.remove_temporaries(tmp_path)) == sorted(left)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_folder_that_another_run_holds_is_waited_for_if_that_is_wanted(tmp_path: Path) -> None:
    held, said, got = FolderLock(tmp_path), list[str](), threading.Event()

    def take() -> None:
        def wait(words: str) -> None:
            said.append(words)
            asked.set()

        with FolderLock(tmp_path, wait=wait):
            got.set()

    asked = threading.Event()
    thread = threading.Thread(target=take)
    thread.start()
    assert asked.wait(60)
    assert not got.is_set()
    held.release()
    thread.join(60)
    assert got.is_set()
    assert said == [f"another run is writing to {tmp_path}; waiting for it"]
    assert not list(tmp_path.iterdir())


def test_a_killed_process_resumes_and_its_debris_is_cleared(tmp_path: Path) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    _embed(straight)
    script = f"""
        import os, signal, sys
        sys.path[:0] = {sys.path!r}
        import test_store_resume as t
        from pathlib import Path
        from safetensors import torch as st
        save = st.save_file
        def dying(tensors, path, metadata):
            save(tensors, path, metadata)
            if "shard-00003" in str(path):
                os.kill(os.getpid(), signal.SIGKILL)
        st.save_file = dying
        t._embed(Path({str(folder)!r}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parent, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(folder) if name.endswith(".tmp")], "the kill left a temporary file"
    assert len(_listed(folder)) == 6
    (folder / "shard-00077.safetensors").write_bytes(b"written, but never listed")
    _embed(folder)
    assert _contents(folder) == _contents(straight)


@contextlib.contextmanager
def _small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB: a real refusal by the operating system, as a full disk gives.

    Around the writing alone: the file that pytest reports into may have grown beyond that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_the_system_refusing_a_write_is_a_clear_error_for_every_kind_of_file(tmp_path: Path) -> None:
    from finescope.corpus import write_rows

    def tensors(path: Path) -> None:
        files.write_tensors(path, {"a": torch.zeros(100_000)}, {})

    records = [{"text": os.urandom(40).hex()} for _ in range(2000)]
    for name, write in [
        ("a.safetensors", tensors),
        ("b.json", lambda path: files.write_json(path, ["x" * 100_000])),
        ("c.jsonl", lambda path: write_rows(path, records)),
        ("d.jsonl.gz", lambda path: write_rows(path, records)),
        ("e.parquet", lambda path: write_rows(path, records)),
        ("f.jsonl.zst", lambda path: write_rows(path, records)),
    ]:
        refused = pytest.raises(StoreError, match=rf"can't write .*{name}: the file-size limit")
        with refused, _small_files():
            write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_tasks_have_noted_is_not_taken_for_other_work_that_was_only_begun(tmp_path: Path) -> None:
    work = ShardFiles(tmp_path, "finescope-test", {"seed": 1}, {})
    other = dataclasses.replace(work, fingerprint={"seed": 2})
    with shards.SharedShards(work, [1]):
        assert not shards.finished_shards(other).begun, "nothing is lost"
        work.note(1, work.write(1, {"values": torch.ones(1)}, pa.table({"id": ["a"]}), {}))
    assert set(shards.finished_shards(work).shards) == {1}
    with pytest.raises(StoreError, match=r"holds work on something else: seed .*Choose another folder"):
        shards.finished_shards(other)
