"""Shares of a corpus that processes embed which know nothing of each other, and their merge into one run.

Fails if: the files of a merged run differ from those of one process; what a task has finished is done again;
a task or a merge that is killed, a shard that is damaged, or a corpus that has changed is passed over in
silence or costs more than itself; tasks and a merge work in the folder at a time.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.corpus.plan import Shard
from finescope.errors import InputError, StoreError
from finescope.storage.lock import FolderLock
from finescope.workflow.share import Share
from finescope.workflow.status import status
from support.accidents import finescope, killed
from support.cli_job import make_wild, save_job
from support.run_files import contents, curated, job_of, small_shards

CODES = "codes/corpus"


pytestmark = pytest.mark.usefixtures("shards_are_small")


@pytest.fixture(scope="module")
def planned(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan with a trained autoencoder; copied before it is used."""
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        out = tmp_path_factory.mktemp("planned") / "run"
        config = out.with_name("job.yaml")
        config.write_text(job_of(job, out).to_yaml())
        done = invoke("plan", "--config", config)
    assert done.exit_code == 0, done.stderr
    assert "4 shards, 60 rows, about " in done.stdout
    return out


@pytest.fixture
def out(planned: Path, tmp_path: Path) -> Path:
    shutil.copytree(planned, tmp_path / "run")
    text = (tmp_path / "run/config.yaml").read_text().replace(str(planned), str(tmp_path / "run"))
    (tmp_path / "run/config.yaml").write_text(text)
    return tmp_path / "run"


def invoke(*arguments: Any, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), env=env)


def share(out: Path, which: str, **environment: str) -> Result:
    return invoke("curate", "--config", out / "config.yaml", "--shard", which, env=environment)


def without_plan(out: Path) -> dict[str, Any]:
    return {name: held for name, held in contents(out).items() if name not in ("plan.parquet", ".lock")}


def made(out: Path) -> list[str]:
    return sorted(path.name for path in (out / CODES).glob("shard-*.safetensors"))


def test_the_plan_says_where_every_shard_stands(planned: Path, job: Path) -> None:
    lines = pq.read_table(planned / "plan.parquet").to_pylist()
    assert [(line["shard"], line["first_row"], line["rows"]) for line in lines] == [
        (0, 0, 16), (1, 16, 16), (2, 32, 16), (3, 48, 12),
    ]  # fmt: skip
    rows = [json.loads(line) for line in (job / "corpus.jsonl").read_text().splitlines()]
    for line in lines:
        texts = [row["text"] for row in rows[line["first_row"] :][: line["rows"]]]
        assert line["characters"] == sum(map(len, texts))
        words = sum(len(text.split()) for text in texts)  # of this tokenizer
        assert abs(line["tokens"] - words) < 0.1 * words
        assert (line["name"], line["row"], line["mark_offset"]) == ("corpus.jsonl", line["first_row"], 0)


def test_shares_in_any_order_are_merged_into_the_run_of_one_process(out: Path, one: Path) -> None:
    shares = ["3/3", "1/3", "2/3"]
    for which in shares:
        done = share(out, which)
        assert done.exit_code == 0, done.stderr
    assert "0 shards embedded" in share(out, "2/3").stdout
    done = invoke("merge", out)
    assert done.exit_code == 0, done.stderr
    assert without_plan(out) == contents(one)
    again = invoke("merge", out)
    assert "embedding corpus: done before" in again.stderr
    assert without_plan(out) == contents(one)


def test_a_merge_names_what_is_missing_and_a_damaged_shard_is_made_again(out: Path, one: Path) -> None:
    share(out, "1/2")
    first = made(out)
    assert 0 < len(first) < 4
    done = invoke("merge", out)
    assert done.exit_code == 1
    assert f"not done yet: {4 - len(first)} shards, by number {len(first)}, " in done.stderr
    assert made(out) == first
    share(out, "2/2")
    whole = (out / CODES / "shard-00001.safetensors").read_bytes()
    (out / CODES / "shard-00001.safetensors").write_bytes(whole[:-4] + b"????")
    before = {name: (out / CODES / name).stat().st_mtime_ns for name in made(out)}
    done = invoke("merge", out)
    assert done.exit_code == 1
    assert "not done yet: 1 shard, by number 1;" in done.stderr
    assert "1 shard embedded" in share(out, "1/1").stdout
    after = {name: (out / CODES / name).stat().st_mtime_ns for name in made(out)}
    assert [name for name in after if after[name] != before.get(name)] == ["shard-00001.safetensors"]
    assert invoke("merge", out).exit_code == 0
    assert without_plan(out) == contents(one)


@pytest.mark.parametrize(
    "dies",
    [
        "shard-00001.json",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("shard-00001.parquet", "shard-00001.safetensors", "manifest.json")
        ),
    ],
)
def test_a_task_that_is_killed_at_any_write_is_begun_again(out: Path, one: Path, dies: str) -> None:
    config = out / "config.yaml"
    assert killed(finescope("curate", "--config", config, "--shard", "1/1", dies=dies))
    done = share(out, "1/1")
    finished = 0 if dies == "manifest.json" else 1
    assert f"{4 - finished} shards embedded" in done.stdout, done.stderr
    assert killed(finescope("merge", out, dies="manifest.json"))
    assert killed(finescope("merge", out, dies="scores.parquet"))
    assert invoke("merge", out).exit_code == 0
    assert without_plan(out) == contents(one)


def test_tasks_and_a_merge_keep_out_of_each_others_way(out: Path) -> None:
    with FolderLock(out, shared=True):
        with FolderLock(out, shared=True), pytest.raises(StoreError, match="another run"):
            FolderLock(out)
        assert "another run is writing" in invoke("merge", out).stderr
        assert share(out, "1/4").exit_code == 0
    with FolderLock(out):
        assert "another run is writing" in share(out, "1/4").stderr


def test_rows_that_change_after_the_plan_are_noticed(job: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(job, tmp_path / "job")
    out = tmp_path / "run"
    config = tmp_path / "job.yaml"
    config.write_text(job_of(folder, out).to_yaml())
    assert invoke("plan", "--config", config).exit_code == 0
    text = (folder / "corpus.jsonl").read_text()
    (folder / "corpus.jsonl").write_text(text)  # the same bytes at another time: they are hashed
    assert share(out, "2/4").exit_code == 0
    (folder / "corpus.jsonl").write_text(text.replace("the", "The"))
    done = share(out, "1/4")
    assert done.exit_code == 1
    assert "plan.parquet is the plan of other rows: sources[0].sha256 was" in done.stderr
    assert "--restart" in invoke("plan", "--config", config).stderr
    assert invoke("plan", "--config", config, "--restart").exit_code == 0
    assert made(out) == []
    assert (status(out).done, status(out).shards) == (0, 4)
    assert share(out, "1/1").exit_code == 0
    assert invoke("merge", out).exit_code == 0
    curated(folder, tmp_path / "one")
    assert without_plan(out) == contents(tmp_path / "one")


def test_a_task_with_too_large_activations_tells_the_others(job: Path, one: Path, tmp_path: Path) -> None:
    wild = save_job(tmp_path / "wild", animals=20, sky=40)
    make_wild(wild / "model")
    options: dict[str, Any] = {"sae_path": str(one / "sae"), "sinks": "keep"}
    config, out = tmp_path / "job.yaml", tmp_path / "run"
    config.write_text(job_of(wild, out, **options).to_yaml())
    invoke("plan", "--config", config)
    for which in ("1/2", "2/2"):
        done = share(out, which)
        assert done.exit_code == 0, done.stderr
    done = invoke("merge", out)
    assert done.exit_code == 0, done.stderr
    curated(wild, tmp_path / "one", **options)
    assert without_plan(out) == contents(tmp_path / "one")


def test_what_a_share_needs_is_said(job: Path, tmp_path: Path, out: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(job_of(job, tmp_path / "none").to_yaml())
    done = invoke("curate", "--config", config, "--shard", "1/2")
    assert "holds no plan.parquet; `finescope plan` with the same job writes it" in done.stderr
    (out / "stages/train.json").unlink()
    assert "isn't trained yet" in share(out, "1/2").stderr
    for wrong in ("0/2", "3/2", "x", "1", "-1/2"):
        assert "a share is written i/n" in share(out, wrong).stderr
    assert "no --workers" in invoke("curate", "--config", config, "--shard", "1/2", "--workers", 2).stderr
    assert "holds no plan.parquet" in invoke("merge", tmp_path).stderr
    assert "memory://run is a URL" in invoke("status", "memory://run").stderr


def test_only_a_share_is_work_for_launched_processes(out: Path) -> None:
    launched = {"RANK": "1", "WORLD_SIZE": "2"}
    done = invoke("curate", "--config", out / "config.yaml", env=launched)
    assert "'finescope curate' is work for one process, but 2 were started" in done.stderr
    done = invoke("curate", "--config", out / "config.yaml", "--shard", "auto", env=launched)
    assert "share 2 of 2: " in done.stdout, done.stderr


def test_launchers_are_asked_for_the_share() -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1",
             "SLURM_ARRAY_TASK_STEP": "2"}  # fmt: skip
    assert Share.parse("auto", slurm) == Share(4, 4)
    assert Share.parse("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4"}) == Share(1, 4)
    assert Share.parse("auto", {"RANK": "3", "WORLD_SIZE": "8"}) == Share(4, 8)
    assert Share.parse("auto", {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) == Share(2, 2)
    assert Share.parse("2/5", slurm) == Share(2, 5)
    with pytest.raises(InputError, match="none of them is set"):
        Share.parse("auto", {})
    with pytest.raises(InputError, match="WORLD_SIZE is None, not a number"):
        Share.parse("auto", {"RANK": "3"})


def test_shares_hold_every_shard_once_and_about_as_much_text() -> None:
    chosen = random.Random(5)
    for count in (1, 2, 3, 7, 50):
        shards, first = [], 0
        for number in range(40):
            rows = chosen.randint(1, 4096)
            shards.append(Shard(first, rows, "", number, chosen.randint(0, 10**6)))
            first += rows
        shares = [Share(number + 1, count).of(shards) for number in range(count)]
        assert [shard for part in shares for shard in part] == shards
        size = sum(shard.characters + shard.rows for shard in shards)
        largest = max(shard.characters + shard.rows for shard in shards)
        for part in shares:
            assert abs(sum(shard.characters + shard.rows for shard in part) - size / count) <= largest
