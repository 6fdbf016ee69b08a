"""Results go to URLs as they go to folders: rows, tables, whole runs, and runs fetched back elsewhere.

Fails if a file at a URL differs from the one that a local path gets, if a store that refuses is noticed after
the work instead of before it, if a half-copied run looks finished, or if what is behind a URL can write
outside of its folder here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from finescope.cli import main
from finescope.corpus import copy_rows, open_corpus, write_rows
from finescope.errors import StoreError
from finescope.storage.files import write_text
from finescope.storage.remote_folder import Remote, working_folder
from support.cli_job import save_job

BUCKET = "memory://bucket"


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store, and a cache of one's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def _finescope(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_rows_are_written_to_urls(tmp_path: Path, memory: Any, ending: str) -> None:
    write_rows(f"{BUCKET}/in{ending}", [{"id": str(at), "text": "x" * at} for at in range(5)])
    write_rows(tmp_path / f"in{ending}", [{"id": str(at), "text": "x" * at} for at in range(5)])
    assert memory.cat(f"/bucket/in{ending}") == (tmp_path / f"in{ending}").read_bytes()
    corpus = open_corpus(f"{BUCKET}/in{ending}")
    assert copy_rows(f"{BUCKET}/deep/out{ending}", corpus, [3, 1]) == 2
    copy_rows(tmp_path / f"out{ending}", corpus, [3, 1])
    assert memory.cat(f"/bucket/deep/out{ending}") == (tmp_path / f"out{ending}").read_bytes()
    write_rows(f"file://{tmp_path}/local{ending}", [{"text": "a"}])
    assert len(list(open_corpus(tmp_path / f"local{ending}"))) == 1


def test_nothing_is_put_when_writing_fails(memory: Any) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(f"{BUCKET}/out.jsonl", broken())
    assert not memory.exists("/bucket/out.jsonl")


def test_a_run_goes_to_a_url_and_is_selected_from_there(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = save_job(tmp_path / "job")
    common = ["--model", job / "model", "--targets", job / "seeds.jsonl", "--corpus", job / "corpus.jsonl"]
    common += ["-k", 10, "--layer", "encoder.layer.0", "--seed", 1, "--report-rows", 5]
    _finescope("curate", *common, "--out", tmp_path / "here")
    said = _finescope("curate", *common, "--out", f"{BUCKET}/run")
    assert "copied to memory://bucket/run" in said
    for name in ("curated.jsonl", "scores.parquet", "selection.parquet", "codes/corpus/manifest.json"):
        assert memory.cat(f"/bucket/run/{name}") == (tmp_path / "here" / name).read_bytes(), name
    assert memory.exists("/bucket/run/report.html")
    assert not memory.exists("/bucket/run/activations")  # what the SAE learnt from stays here
    assert not [path for path in memory.find("/bucket/run") if "/." in path]

    # The same command again does no stage again.
    again = _finescope("curate", *common, "--out", f"{BUCKET}/run")
    assert "embedding corpus: done before" in again

    # Elsewhere: nothing of the run is on that machine.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    _finescope("select", f"{BUCKET}/run", "-k", 3, "--format", "parquet")
    assert len(list(open_corpus(f"{BUCKET}/run/curated.parquet"))) == 3
    assert not memory.exists("/bucket/run/curated.jsonl")

    # And back here, where an older state of it lies.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _finescope("evaluate", f"{BUCKET}/run")
    assert len(list(open_corpus(f"{BUCKET}/run/curated.parquet"))) == 3


def test_one_of_several_target_sets_is_selected_from_at_its_url(tmp_path: Path, memory: Any) -> None:
    job = save_job(tmp_path / "job")
    common = ["--model", job / "model", "--corpus", job / "corpus.jsonl", "--layer", "encoder.layer.0"]
    for name in ("a", "b"):
        common += ["--targets", f"{name}={job / 'seeds.jsonl'}"]
    url = f"{BUCKET}/sets/run"  # a folder of that name says nothing by itself
    _finescope("curate", *common, "-k", 6, "--out", url)
    said = _finescope("select", f"{url}/sets/b", "-k", 2)
    assert f"copied to {url}" in said
    assert [len(list(open_corpus(f"{url}/sets/{name}/curated.jsonl"))) for name in ("a", "b")] == [6, 2]
    _finescope("select", url, "-k", 3)
    assert [len(list(open_corpus(f"{url}/sets/{name}/curated.jsonl"))) for name in ("a", "b")] == [3, 3]


def test_single_stages_take_and_give_urls(tmp_path: Path, memory: Any) -> None:
    job = save_job(tmp_path / "job")
    model = ["--model", job / "model", "--layer", "encoder.layer.0"]
    _finescope("activations", *model, "--corpus", job / "corpus.jsonl", "--out", f"{BUCKET}/activations")
    _finescope("train", f"{BUCKET}/activations", "--out", tmp_path / "sae", "--num-latents", 64, "-k", 4)
    sae = ["--sae", tmp_path / "sae"]
    _finescope("embed", *model, *sae, "--corpus", job / "corpus.jsonl", "--out", f"{BUCKET}/codes")
    _finescope("embed", *model, *sae, "--corpus", job / "seeds.jsonl", "--out", tmp_path / "seeds")
    _finescope("score", f"{BUCKET}/codes", tmp_path / "seeds", "--out", f"{BUCKET}/scores.parquet")
    _finescope(
        "select",
        f"{BUCKET}/scores.parquet",
        "--corpus",
        job / "corpus.jsonl",
        *("-k", 4, "--out", f"{BUCKET}/picked.jsonl"),
    )
    assert len(memory.cat("/bucket/picked.jsonl").splitlines()) == 4


def test_a_store_that_refuses_is_noticed_before_the_work(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = save_job(tmp_path / "job")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no credentials")

    monkeypatch.setattr(type(memory), "pipe_file", refuse)
    arguments = ["--model", job / "model", "--targets", job / "seeds.jsonl"]
    arguments += ["--corpus", job / "corpus.jsonl", "--out", f"{BUCKET}/run"]
    result = CliRunner().invoke(main, ["curate", *map(str, arguments)])
    assert result.exit_code == 1
    assert "can't write to memory://bucket/run: PermissionError: no credentials" in result.output
    assert not (working_folder(f"{BUCKET}/run") / "codes").exists()


def test_a_run_is_only_there_when_its_manifest_is(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(f"{BUCKET}/run")
    for name in ("a.txt", "manifest.json", "z.txt"):
        write_text(remote.folder / name, name)
    put, sent = type(memory).put_file, []

    def until_z(self: Any, file: str, path: str, **options: Any) -> None:
        if path.endswith("z.txt"):
            raise ConnectionError("gone")
        sent.append(path)
        put(self, file, path, **options)

    monkeypatch.setattr(type(memory), "put_file", until_z)
    with pytest.raises(StoreError, match=r"can't write memory://bucket/run/z\.txt: ConnectionError: gone"):
        remote.send()
    assert sent == ["/bucket/run/a.txt"]
    with pytest.raises(StoreError, match=r"can't read memory://bucket/run/manifest\.json"):
        Remote(f"{BUCKET}/run").receive()
    monkeypatch.setattr(type(memory), "put_file", put)
    assert remote.send()[0] == 2  # the rest
    assert remote.send() == (0, 0)


def test_what_lies_at_the_url_decides_and_not_what_was_sent_once(memory: Any) -> None:
    remote = Remote(f"{BUCKET}/run")
    for name in ("a.txt", "manifest.json"):
        write_text(remote.folder / name, name)
    remote.send()
    memory.rm("/bucket/run", recursive=True)
    assert remote.send()[0] == 2
    memory.pipe("/bucket/run/a.txt", b"cut")
    assert remote.send()[0] == 2  # the file, and the manifest after it
    assert memory.cat("/bucket/run/a.txt") == b"a.txt"
    memory.pipe("/bucket/run/a.txt", b"a.TXT")  # of another machine, as long as ours
    memory.pipe("/bucket/run/manifest.json", b"another")
    assert remote.send()[0] == 2
    assert memory.cat("/bucket/run/a.txt") == b"a.txt"
    assert memory.cat("/bucket/run/manifest.json") == b"manifest.json"


def test_an_old_manifest_does_not_stand_over_new_files(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(f"{BUCKET}/run")
    for name in ("a.txt", "manifest.json", "z.txt"):
        write_text(remote.folder / name, name)
    remote.send()
    write_text(remote.folder / "a.txt", "other")

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", gone)
        with pytest.raises(StoreError, match="gone"):
            remote.send()
    assert not memory.exists("/bucket/run/manifest.json")
    assert remote.send()[0] == 2


def test_a_copy_that_broke_off_is_no_run(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "manifest.json", "z.txt"):
        memory.pipe(f"/bucket/run/{name}", name.encode())
    get = type(memory).get_file

    def until_z(self: Any, path: str, file: str, **options: Any) -> None:
        if path.endswith("z.txt"):
            raise ConnectionError("gone")
        get(self, path, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", until_z)
        with pytest.raises(StoreError, match="gone"):
            Remote(f"{BUCKET}/run").receive()
    folder = working_folder(f"{BUCKET}/run")
    assert not (folder / "manifest.json").exists()
    Remote(f"{BUCKET}/run").receive()
    assert (folder / "z.txt").read_text() == "z.txt"
    assert Remote(f"{BUCKET}/run").send() == (0, 0)


def test_names_behind_a_url_stay_in_the_folder(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/bucket/run/manifest.json", b"{}")
    with monkeypatch.context() as patch:
        found = {"/bucket/run/../../elsewhere.txt": {"size": 1}}
        patch.setattr(type(memory), "find", lambda *_, **options: found)
        with pytest.raises(StoreError, match="would be written outside"):
            Remote(f"{BUCKET}/run").receive()
