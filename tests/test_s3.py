"""Corpora and results in a store that speaks S3, over HTTP: a real client and a real server on the loopback.

Fails if: rows, results or a whole run differ from those on a disk; a store that stalls, or refuses for a
moment, ends a run; one that goes on refusing is reported as anything else; a half-copied run or shard looks
finished; what URLs can't be used for is not refused in words.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.corpus import copy_rows, open_corpus, write_rows
from finescope.errors import InputError, ReadError, StoreError
from finescope.storage.remote_folder import Remote
from finescope.workflow.engines import crew
from finescope.workflow.engines.processes import Processes
from support.run_files import contents, curated, job_of, small_shards
from support.s3_server import BUCKET, Server

moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="moto[server] isn't installed")
s3fs = pytest.importorskip("s3fs")

pytestmark = [
    pytest.mark.slow,
    # Sockets that client and server leave to the collector, and what the client's library says of itself.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = f"s3://{BUCKET}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An empty bucket, and a cache of one's own."""
    found = Server()
    for name, value in {
        "AWS_ENDPOINT_URL": found.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(BUCKET)
    yield found
    found.calm()
    s3fs.S3FileSystem().rm(BUCKET, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    found.stop()


def put(path: Path, name: str) -> str:
    s3fs.S3FileSystem().put_file(str(path), f"{BUCKET}/{name}")
    return f"{ROOT}/{name}"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_rows_are_read_as_from_a_disk(tmp_path: Path, server: Server) -> None:
    here = tmp_path / "rows"
    for name, letters in (("a.jsonl", "ab"), ("b.jsonl.gz", "cd"), ("deep/c.parquet", "ef"), ("d.csv", "g")):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [{"id": letter, "text": letter * 9} for letter in letters]
        if name.endswith(".csv"):
            (here / name).write_text("id,text\ng,ggggggggg\n")
        else:
            write_rows(here / name, rows)
        put(here / name, f"rows/{name}")
    local, remote = open_corpus(here), open_corpus(f"{ROOT}/rows")
    assert [(row.id, row.content, row.place) for row in remote] == [
        (row.id, row.content, row.place) for row in local
    ]
    digests = [[source["sha256"] for source in it.fingerprint()["sources"]] for it in (local, remote)]
    assert digests[0] == digests[1]
    assert [row.id for row in open_corpus(f"{ROOT}/rows/*.jsonl*")] == list("abcd")
    assert copy_rows(f"{ROOT}/picked.parquet", remote, [5, 0]) == 2
    copy_rows(tmp_path / "picked.parquet", local, [5, 0])
    assert s3fs.S3FileSystem().cat(f"{BUCKET}/picked.parquet") == (tmp_path / "picked.parquet").read_bytes()


def test_what_is_not_there_is_told_from_what_cannot_be_read(tmp_path: Path, server: Server) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        open_corpus(f"{ROOT}/none.jsonl")
    with pytest.raises(InputError, match=r"nobucket"):
        open_corpus("s3://nobucket/a.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    with pytest.raises(InputError, match="truncated or corrupt") as caught:
        open_corpus(put(tmp_path / "a.jsonl.gz", "a.jsonl.gz")).scan()
    assert not isinstance(caught.value, ReadError)


def test_a_store_that_stalls_or_refuses_for_a_moment_is_read(tmp_path: Path, server: Server) -> None:
    write_rows(tmp_path / "a.jsonl", [{"id": str(at), "text": "x" * at} for at in range(50)])
    corpus = open_corpus(put(tmp_path / "a.jsonl", "a.jsonl"))
    server.stall, server.refusals = 0.05, 2
    server.of = lambda method, path: method == "GET"
    assert [row.id for row in corpus] == [str(at) for at in range(50)]
    assert server.refusals == 0


def test_a_store_that_goes_on_refusing_is_named(tmp_path: Path, server: Server) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "abc"}])
    corpus = open_corpus(put(tmp_path / "a.jsonl", "a.jsonl"))
    server.refusals = 10**6
    server.of = lambda method, path: path.endswith("a.jsonl")
    with pytest.raises(
        ReadError, match=rf"{BUCKET}/a\.jsonl can't be read: .*(reduce your request|SlowDown)"
    ):
        list(corpus)


def test_a_run_goes_there_and_is_selected_from_there(
    job: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, seeds = put(job / "corpus.jsonl", "in/corpus.jsonl"), put(job / "seeds.jsonl", "in/seeds.jsonl")
    common = ["--model", job / "model", "-k", 10, "--layer", "encoder.layer.0", "--seed", 1]
    local = ["--corpus", job / "corpus.jsonl", "--targets", job / "seeds.jsonl"]
    done("curate", *common, *local, "--out", tmp_path / "here")
    arguments = ["curate", *common, "--corpus", corpus, "--targets", seeds, "--out", f"{ROOT}/run"]
    assert f"copied to {ROOT}/run" in done(*arguments)
    store = s3fs.S3FileSystem()
    store.invalidate_cache()
    for name in (
        "curated.jsonl",
        "scores.parquet",
        "selection.parquet",
        "codes/corpus/shard-00000.safetensors",
    ):
        assert store.cat(f"{BUCKET}/run/{name}") == (tmp_path / "here" / name).read_bytes(), name
    assert "embedding corpus: done before" in done(*arguments)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    done("select", f"{ROOT}/run", "-k", 3, "--format", "parquet")
    store.invalidate_cache()
    assert len(list(open_corpus(f"{ROOT}/run/curated.parquet"))) == 3
    assert not store.exists(f"{BUCKET}/run/curated.jsonl")


def test_a_run_is_only_there_when_its_manifest_is(tmp_path: Path, server: Server) -> None:
    remote = Remote(f"{ROOT}/run")
    for name in ("a.txt", "manifest.json", "z.txt"):
        (remote.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (remote.folder / name).write_text(name)
    server.refusals = 10**6
    server.of = lambda method, path: method == "PUT" and path.endswith("z.txt")
    with pytest.raises(StoreError, match=rf"can't write {ROOT}/run/z\.txt"):
        remote.send()
    server.calm()
    with pytest.raises(StoreError, match=rf"can't read {ROOT}/run/manifest\.json"):
        Remote(f"{ROOT}/run").receive()
    assert remote.send()[0] == 2
    assert remote.send() == (0, 0)


def test_workers_read_from_there_and_outlive_what_passes(
    job: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    monkeypatch.setattr(crew, "PAUSE", 0.5)
    corpus, said = put(job / "corpus.jsonl", "in/corpus.jsonl"), list[str]()
    options: dict[str, Any] = {"corpus": [corpus]}
    curated(job, tmp_path / "one", **options)
    real = crew.at_work

    def at_work(*arguments: Any) -> Iterator[Any]:
        """From when the workers begin, the corpus is refused until the first has given up."""
        server.refusals = 10**6
        server.of = lambda method, path: method == "GET" and path.endswith("corpus.jsonl")
        yield from real(*arguments)

    monkeypatch.setattr("finescope.workflow.engines.processes.at_work", at_work)

    def say(words: str) -> None:
        said.append(words)
        server.calm()

    curated(job, tmp_path / "two", engine=Processes(2, say=say), **options)
    assert [line for line in said if "it is tried again" in line]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_shares_of_machines_that_see_nothing_else_are_merged(
    job: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    curated(job, tmp_path / "one")
    config = tmp_path / "job.yaml"
    config.write_text(job_of(job, Path("OUT")).to_yaml().replace("OUT", f"{ROOT}/run"))

    def on(machine: str, *arguments: object) -> str:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        return done(*arguments)

    on("head", "plan", "--config", config)
    assert "2 shards embedded" in on("a", "curate", "--config", config, "--shard", "1/2")
    server.refusals = 10**6
    server.of = lambda method, path: method == "PUT" and path.endswith("shard-00003.json")
    refused = invoke("curate", "--config", config, "--shard", "2/2")
    assert f"can't write {ROOT}/run/codes/corpus/shard-00003.json" in refused.output
    server.calm()
    assert "1 shard embedded" in on("b", "curate", "--config", config, "--shard", "2/2")
    on("c", "merge", f"{ROOT}/run")
    store = s3fs.S3FileSystem()
    store.invalidate_cache()
    for name in ("scores.parquet", "selection.parquet", "curated.jsonl", "codes/corpus/manifest.json"):
        assert store.cat(f"{BUCKET}/run/{name}") == (tmp_path / "one" / name).read_bytes(), name
    assert "which only finished runs are copied to" in invoke("status", f"{ROOT}/run").output
