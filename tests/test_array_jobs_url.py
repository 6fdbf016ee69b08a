"""Tasks of an array that share no folder: plan, shards and merged run lie at a URL.

Every task has a machine of its own here, which is a cache of its own. Fails if: the files of a merged run
differ from those of one process; a shard that lies at the URL is made again, or one that is half there isn't;
a task takes what is left of another plan; a merge passes over what is missing or damaged, or copies shards
back that it has brought; activations travel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.storage.remote_folder import working_folder
from support.cli_job import make_wild, save_job
from support.run_files import contents, in_small_shards, job_of

URL = "memory://array/run"
CODES = "/array/run/codes/corpus"


pytestmark = pytest.mark.usefixtures("shards_are_small")


class Machines:
    """Machines that see the same URL and nothing of each other."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch
        self.config = folder / "job.yaml"

    def on(self, machine: str, *arguments: object) -> Result:
        self._patch.setenv("XDG_CACHE_HOME", str(self._folder / machine))
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    def plan(self, job: Path, *options: str, **settings: Any) -> None:
        self.config.write_text(job_of(job, Path("OUT"), **settings).to_yaml().replace("OUT", URL))
        done = self.on("head", "plan", "--config", self.config, *options)
        assert done.exit_code == 0, done.stderr

    def share(self, machine: str, which: str) -> Result:
        return self.on(machine, "curate", "--config", self.config, "--shard", which)

    def run(self, machine: str) -> dict[str, Any]:
        """What a machine has of the run, with OUT for its URL; without what only such runs have."""
        self._patch.setenv("XDG_CACHE_HOME", str(self._folder / machine))
        found = {}
        for name, held in contents(working_folder(URL)).items():
            if name.startswith(".") or name in ("plan.parquet", "planned.json"):
                continue
            text = not isinstance(held, bytes)
            found[name] = json.loads(json.dumps(held).replace(URL, "OUT")) if text else held
        return found


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def store() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/array"):
        system.rm("/array", recursive=True)


def notes(store: Any) -> list[str]:
    return sorted(Path(path).name for path in store.find(CODES) if path.endswith(".json"))


def without_activations(found: dict[str, Any]) -> dict[str, Any]:
    return {name: held for name, held in found.items() if name.partition("/")[0] != "activations"}


def test_shares_of_several_machines_are_merged_on_another(
    job: Path, one: Path, machines: Machines, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines.plan(job)
    assert not store.exists("/array/run/activations")
    assert "2 shards embedded" in machines.share("a", "2/2").stdout
    done = machines.on("c", "merge", URL)
    assert done.exit_code == 1
    assert "not done yet: 2 shards, by number 0, 1;" in done.stderr
    assert "2 shards embedded" in machines.share("b", "1/2").stdout
    assert "0 shards embedded" in machines.share("c", "1/1").stdout
    sent: list[str] = []
    real = store.put_file
    monkeypatch.setattr(
        type(store), "put_file", lambda self, file, path, **more: sent.append(path) or real(file, path)
    )
    done = machines.on("c", "merge", URL)
    assert done.exit_code == 0, done.stderr
    assert sent[-1] == "/array/run/manifest.json"
    assert not [path for path in sent if "shard-" in path and "/corpus/" in path]
    wanted = without_activations(contents(one))
    assert machines.run("c") == wanted
    assert "0 shards embedded" in machines.share("a", "1/2").stdout
    assert notes(store) == ["manifest.json"]
    assert machines.on("d", "merge", URL).exit_code == 0
    assert machines.run("d") == wanted


def test_what_is_half_there_or_damaged_is_made_again(
    job: Path, one: Path, machines: Machines, store: Any
) -> None:
    machines.plan(job)
    machines.share("a", "1/1")
    assert notes(store)[1:] == [f"shard-{number:05d}.json" for number in range(4)]
    store.rm_file(f"{CODES}/shard-00000.json")  # killed before the note
    store.pipe_file(f"{CODES}/shard-00001.json", b"{")
    store.pipe_file(f"{CODES}/shard-00002.parquet", b"PAR1")
    whole = store.cat_file(f"{CODES}/shard-00003.safetensors")
    store.pipe_file(f"{CODES}/shard-00003.safetensors", whole[:-4] + b"????")
    assert "3 shards embedded" in machines.share("b", "1/1").stdout
    done = machines.on("c", "merge", URL)
    assert "not done yet: 1 shard, by number 3;" in done.stderr
    assert "1 shard embedded" in machines.share("d", "1/1").stdout
    assert machines.on("c", "merge", URL).exit_code == 0
    assert machines.run("c") == without_activations(contents(one))


def test_a_task_takes_up_a_new_plan(job: Path, machines: Machines, store: Any) -> None:
    machines.plan(job)
    machines.share("a", "1/1")
    machines.plan(job)
    assert "0 shards embedded" in machines.share("b", "1/1").stdout, "it is the same plan"
    before = store.cat_file("/array/run/sae/sae.safetensors")
    machines.plan(job, "--restart", seed=1)
    assert store.cat_file("/array/run/sae/sae.safetensors") != before
    assert "4 shards embedded" in machines.share("a", "1/1").stdout
    assert "0 shards embedded" in machines.share("b", "1/1").stdout
    assert machines.on("c", "merge", URL).exit_code == 0
    found = machines.run("c")
    machines.on("alone", "curate", "--config", machines.config, "--out", machines.config.with_name("run"))
    assert found["scores.parquet"] == machines.config.with_name("run").joinpath("scores.parquet").read_bytes()


def test_activations_that_need_more_range_are_rounded_alike_everywhere(
    tmp_path: Path, machines: Machines
) -> None:
    wild = save_job(tmp_path / "wild", animals=20, sky=40)
    make_wild(wild / "model")
    one = in_small_shards(wild, tmp_path / "one")
    sae = {"sae_path": str(one / "sae")}
    machines.plan(wild, **sae)
    for which in ("1/2", "2/2", "1/2"):
        done = machines.share(which[0], which)
        assert done.exit_code == 0, done.stderr
    assert machines.on("c", "merge", URL).exit_code == 0
    assert {
        name: held for name, held in machines.run("c").items() if name.startswith("codes/corpus/shard")
    } == {name: held for name, held in contents(one).items() if name.startswith("codes/corpus/shard")}


def test_what_a_share_needs_is_said(job: Path, machines: Machines) -> None:
    machines.config.write_text(job_of(job, Path("OUT")).to_yaml().replace("OUT", URL))
    for done in (machines.share("a", "1/2"), machines.on("a", "merge", URL)):
        assert f"{URL} holds no planned.json; `finescope plan` with the same job writes it" in done.stderr


@pytest.mark.parametrize("name", ["../../elsewhere", "ABSOLUTE"])
def test_a_plan_writes_nothing_outside(job: Path, machines: Machines, store: Any, name: str) -> None:
    outside = machines.config.with_name("elsewhere")
    machines.config.write_text(job_of(job, Path("OUT")).to_yaml().replace("OUT", URL))
    files = {name.replace("ABSOLUTE", str(outside)): "0" * 64}
    store.pipe_file("/array/run/planned.json", json.dumps({"files": files, "codes": ""}).encode())
    assert "would be written outside of" in machines.share("a", "1/1").stderr
    assert not outside.exists()
