"""What a run will cost, told beforehand: held against the files, tokens and reads of the run itself.

Fails if: tokens, parameters, operations, bytes on the disk or bytes read from a URL aren't those of the run;
a bound is below what it bounds; workers are said to divide what one process does; the calculation of the
documentation isn't the function's.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from finescope.activations import ActivationTap
from finescope.cli import main
from finescope.corpus import files
from finescope.curation.limits import SelectionConfig
from finescope.progress import Reporter
from finescope.storage.files import read_json
from finescope.workflow import head
from finescope.workflow.cost import Estimate, Throughput, Workload, estimate
from finescope.workflow.run import Run
from finescope.workflow.setrun import of_job
from finescope.workflow.stages.report import Report
from finescope.workflow.workload import selected_at_most
from support.cli_job import rows_of, save_job, write_jsonl
from support.run_files import curated, job_of

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_job(tmp_path_factory.mktemp("job"), animals=300, sky=500)


@pytest.fixture(scope="module")
def told(job: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Estimate, Estimate]:
    """A finished run, and what was estimated before it and after it."""
    out = tmp_path_factory.mktemp("run") / "out"
    asked = job_of(job, out)
    before = Run(asked, QUIET).estimate()
    assert not (out / "sae").exists(), "nothing is trained for an estimate"
    curated(job, out)
    return out, before, Run(asked, QUIET).estimate()


def on_disk(*places: Path) -> int:
    found = [
        [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
        for place in places
    ]
    return sum(file.stat().st_size for part in found for file in part)


def test_the_disk_is_that_of_the_run(told: tuple[Path, Estimate, Estimate]) -> None:
    """Within 5 % each, and 10 % of what is measured by writing the tables of rows that aren't scored yet."""
    out, before, after = told
    disk = after.disk
    assert disk["plan"] == on_disk(out / "plan.parquet")
    assert disk["activations"] == pytest.approx(on_disk(out / "activations"), rel=0.05)
    assert disk["autoencoder"] == pytest.approx(on_disk(out / "sae"), rel=0.05)
    codes = disk["codes"] + disk["means"] + disk["beside the codes"]
    assert codes == pytest.approx(on_disk(out / "codes/corpus"), rel=0.05)
    assert disk["scores"] == pytest.approx(
        on_disk(out / "scores.parquet", out / "selection.parquet"), rel=0.1
    )
    assert disk["selected rows"] == pytest.approx(on_disk(out / "curated.jsonl"), rel=0.1)
    kept = read_json(out / "codes/corpus/manifest.json")["shards"][0]["nnz"] / 800
    assert before.load.bounded
    assert before.load.kept >= kept
    assert not after.load.bounded
    assert after.load.kept == pytest.approx(kept, rel=0.05)
    assert before.disk["autoencoder"] == disk["autoencoder"]


def test_tokens_are_those_of_the_manifest(
    told: tuple[Path, Estimate, Estimate], job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before, _ = told
    stages = read_json(out / "manifest.json")["stages"]
    assert before.load.tokens == stages["embed-corpus"]["tokens"]
    assert before.load.sample_tokens == stages["activations"]["tokens"]
    assert before.load.target_tokens == stages["embed-targets"]["tokens"]
    trained = stages["train"]
    assert before.load.trained_tokens == trained["tokens"] * trained["training"]["num_epochs"]
    assert before.load.latents == trained["latents"]
    monkeypatch.setattr(head, "COUNTED_ROWS", 100)  # an eighth of the rows tells of the others
    found = Run(job_of(job, tmp_path / "out"), QUIET).estimate()
    assert found.load.tokens == pytest.approx(before.load.tokens, rel=0.02)


@pytest.mark.parametrize("layer", [0, 1])
def test_operations_are_those_of_the_layers_below(job: Path, layer: int) -> None:
    """BERT by hand: four products of D², two of D and the inner width I, and attention, in each block."""
    width, inner, blocks = 32, 64, layer + 1
    tap = ActivationTap(job / "model", f"layers.{layer}")
    cost = tap.cost()
    assert cost.per_token == blocks * 2 * (4 * width**2 + 2 * width * inner)
    assert cost.per_pair == blocks * 4 * width
    block = 4 * (width**2 + width) + 2 * width * inner + inner + width + 2 * 2 * width
    embeddings = (5 + 37 + 64 + 2) * width + 2 * width
    assert cost.parameters == embeddings + blocks * block
    assert cost.of([3, 5]) == 8 * cost.per_token + 34 * cost.per_pair


def test_windows_that_overlap_are_counted_as_they_are_read(job: Path, tmp_path: Path) -> None:
    whole, parted = (
        Run(job_of(job, tmp_path / str(number), **settings), QUIET).estimate().load
        for number, settings in enumerate(({}, {"max_length": 8, "stride": 3}))
    )
    assert parted.tokens == whole.tokens
    assert parted.model_flops > 1.3 * whole.model_flops


class Reads:
    """Counts the bytes that are read of files behind URLs."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        opened = files.File.open
        patch.setattr(
            files.File,
            "open",
            lambda file: opened(file) if file.system is None else _Counted(opened(file), self),
        )


class _Counted:
    def __init__(self, file: Any, reads: Reads) -> None:
        self._file, self._reads = file, reads

    def read(self, *size: int) -> bytes:
        block: bytes = self._file.read(*size)
        self._reads.bytes += len(block)
        return block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def remote(job: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.pipe_file("/estimate/corpus.jsonl", (job / "corpus.jsonl").read_bytes())
    yield "memory://estimate/corpus.jsonl"
    system.rm("/estimate", recursive=True)


@pytest.mark.parametrize("settings", [{}, {"train_tokens": 3000}, {"sae_path": "sae"}])
def test_what_is_read_from_a_url_is_what_was_told(
    told: tuple[Path, Estimate, Estimate],
    job: Path,
    remote: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    given = {name: str(told[0] / value) if name == "sae_path" else value for name, value in settings.items()}
    asked = job_of(job, tmp_path / "out", corpus=[remote], label_column=None, **given)
    found = Run(asked, QUIET).estimate(3)
    (tmp_path / "out/plan.parquet").unlink()
    reads = Reads(monkeypatch)
    Run(asked, QUIET).curate()
    assert found.network["corpus"] == pytest.approx(reads.bytes, rel=0.02)
    sae = on_disk(told[0] / "sae") if "sae_path" in given else found.load.weight_bytes
    assert found.network["model"] == 3 * (on_disk(job / "model") + sae)
    assert told[1].network["corpus"] == 0
    if "sae_path" in given:
        assert found.disk["autoencoder"] == 0


def test_results_that_go_to_a_url_are_sent(
    job: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = replace(job_of(job, tmp_path), out="memory://estimated")
    load = Run(asked, QUIET).estimate()
    assert load.network["results"] == sum(load.disk.values()) - load.disk["activations"]


LOAD = Workload(
    1000, 50_000, model_flops=2e6, width=100, latents=1000, kept=10,
    sample_tokens=10_000, trained_tokens=20_000, target_tokens=100,
)  # fmt: skip


def test_hours_follow_from_operations_and_throughput() -> None:
    found = estimate(LOAD, Throughput.given(LOAD, 4, flops=1e9))
    encoding = 2 * 100 * 1000
    assert found.flops == {
        "sample": 10_000 * 2e6,
        "training": 5 * encoding * 20_000,
        "embedding": 40_000 * 2e6 + 50_000 * encoding,
        "targets": 100 * (2e6 + encoding),
    }
    assert found.hours == {name: pytest.approx(value / 1e9 / 3600) for name, value in found.flops.items()}
    serial = sum(found.hours.values()) - found.hours["embedding"]
    assert found.serial_hours == pytest.approx(serial)
    assert found.elapsed_hours == pytest.approx(serial + found.hours["embedding"] / 4)
    rates = Throughput.given(LOAD, 1, tokens_per_second=500)
    assert 3600 * estimate(replace(LOAD, sample_tokens=0), rates).hours["embedding"] == pytest.approx(
        50_000 / 500
    )
    with pytest.raises(ValueError, match="flops or tokens_per_second"):
        Throughput.given(LOAD, 1)


def test_numbers_of_many_latents_are_wider() -> None:
    few, many = (
        estimate(replace(LOAD, latents=latents), Throughput(1, 1)) for latents in (1 << 16, (1 << 16) + 1)
    )
    assert few.disk["codes"] == 1000 * 10 * (2 + 2)
    assert many.disk["codes"] == 1000 * 10 * (4 + 2)
    assert estimate(replace(LOAD, means=False), Throughput(1, 1)).disk["means"] == 0


def test_the_least_limit_bounds_what_is_selected() -> None:
    assert selected_at_most(SelectionConfig(min_score=0.5), 1000, 5000) == 1000
    assert selected_at_most(SelectionConfig(k=20, fraction=0.5), 1000, 5000) == 20
    assert selected_at_most(SelectionConfig(fraction=0.0011, k=20), 1000, 5000) == 2
    assert selected_at_most(SelectionConfig(token_budget=101), 1000, 5000) == 21


def test_several_target_sets_have_tables_of_their_own(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Report, "work", lambda *_: None)  # pages cost more than all else here
    other = write_jsonl(tmp_path / "sky.jsonl", rows_of("sky", 4, seed=1))
    sets = [f"animals={job / 'seeds.jsonl'}", f"sky={other}"]
    asked = job_of(job, tmp_path / "out", targets="", target_sets=sets, draws=0)
    out, run = tmp_path / "out", of_job(asked)(asked, QUIET)
    found = run.estimate()
    run.curate()
    tables = [
        out / "rows.parquet",
        *out.rglob("sets/*/scores.parquet"),
        *out.rglob("sets/*/selection.parquet"),
    ]
    assert len(tables) == 5
    assert found.disk["scores"] == pytest.approx(on_disk(*tables), rel=0.1)
    assert found.load.targets == 10


def invoke(folder: Path, out: Path, *options: Any) -> Any:
    config = out.with_suffix(".yaml")
    config.write_text(job_of(folder, out).to_yaml())
    return CliRunner().invoke(main, ["plan", "--config", str(config), *map(str, options)])


def test_the_command_says_it_to_people_and_to_machines(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = invoke(job, out, "--estimate", "-q", "--workers", 8, "--flops", 1e9)
    assert said.exit_code == 0, said.stderr
    assert (out / "plan.parquet").exists()
    for words in (
        "documents: 800",
        "given: 1e+09 FLOP/s a worker",
        "with 8 workers: ",
        " by one process",
        "at most ",
        "network: ",
    ):
        assert words in said.stdout
    plain = json.loads(invoke(job, out, "--estimate", "--json", "-q", "--tokens-per-second", 100).stdout)
    assert plain["documents"] == 800
    assert plain["throughput"]["said"] == "given: 100 tokens/s a worker"
    embedding = plain["flops"]["embedding"] / plain["throughput"]["model_flops_per_second"] / 3600
    assert plain["device_hours"]["embedding"] == pytest.approx(embedding, rel=1e-4)
    measured = json.loads(invoke(job, out, "--estimate", "--json", "-q").stdout)
    assert "measured here" in measured["throughput"]["said"]
    assert measured["device_hours"]["sample"] > 0
    one, embedding = measured["elapsed_hours"], measured["device_hours"]["embedding"]
    assert one == pytest.approx(sum(measured["device_hours"].values()), rel=1e-4)
    assert measured["serial_hours"] == pytest.approx(one - embedding, rel=1e-2)
    assert "go with --estimate" in invoke(job, out, "--flops", 1).stderr
    assert "give one" in invoke(job, out, "--estimate", "--flops", 1, "--tokens-per-second", 1).stderr


def test_the_calculation_of_the_documentation_is_reproducible() -> None:
    page = (Path(__file__).parent.parent / "docs/pages/scale.md").read_text()
    ((code, shown),) = re.findall(
        r"^```python\n(.*?)^```\n+```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "scale.md", "exec"), {})
    assert printed.getvalue() == shown
    assert "  codes: 384 GB\n" in shown
