"""Bad input ends with exit code 1 and a message that names the thing, the place and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from support.cli_job import rows_of, save_job, write_jsonl


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_job(tmp_path_factory.mktemp("job"), animals=10, sky=20)


def curate(job: Path, out: Path, **changed: Any) -> Result:
    settings = {
        "model": job / "model",
        "layer": "layers.0",
        "targets": job / "seeds.jsonl",
        "corpus": job / "corpus.jsonl",
        "out": out,
    } | changed
    arguments = [
        part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    quick = ["--set", "training.num_epochs=1", "--draws", "0", "-q"]
    return CliRunner().invoke(main, ["curate", *arguments, *quick], catch_exceptions=False)


def curated(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "curated.jsonl").read_text(encoding="utf-8").splitlines()]


def with_row(index: int, row: Any) -> Callable[[Path], Path]:
    """Make a corpus whose row ``index`` is replaced."""

    def make(folder: Path) -> Path:
        lines = [json.dumps(line) for line in rows_of("sky", 6)]
        lines[index] = row if isinstance(row, str) else json.dumps(row)
        path = folder / "bad.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


CASES: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "missing column": ("text_column", lambda _: "txt", ("'txt'", "did you mean 'text'")),
    "broken JSON": ("corpus", with_row(3, '{"text": "a'), ("bad.jsonl:4",)),
    "non-string text": ("corpus", with_row(2, {"id": "x", "text": 7}), ("bad.jsonl:3", "a number (7)")),
    "duplicate id": (
        "corpus",
        with_row(4, rows_of("sky", 1)[0]),
        ("occurs twice", "bad.jsonl:1", "bad.jsonl:5"),
    ),
    "empty corpus": ("corpus", lambda f: write_jsonl(f / "none.jsonl", []), ("none.jsonl", "no rows")),
    "no file": ("corpus", lambda f: f / "corpsu.jsonl", ("corpsu.jsonl", "does not exist")),
    "unknown format": ("corpus", lambda f: write_jsonl(f / "c.txt", []), (".txt",)),
    "empty targets": ("targets", lambda f: write_jsonl(f / "t.jsonl", []), ("t.jsonl", "no rows")),
    "target without text": (
        "targets",
        lambda f: write_jsonl(f / "t.jsonl", [{"id": "a", "text": "cats purr"}, {"id": "b", "text": " "}]),
        ("t.jsonl:2", "no text; write one or remove the row"),
    ),
    "wrong model path": ("model", lambda f: f / "no-model", ("no-model",)),
    "wrong hookpoint": ("layer", lambda _: "layers.7", ("layers.7", "encoder.layer.0")),
    "wrong device": ("device", lambda _: "cuda:99", ("device 'cuda:99' can't be used",)),
    "no SAE": ("sae", lambda f: f / "no-sae", ("no-sae",)),
    "wrong label column": ("label_column", lambda _: "topic", ("'topic'", "label")),
    "wrong target label": ("target_label", lambda _: "sports", ("'sports'", "sky")),
}


@pytest.mark.parametrize("name", CASES)
def test_message_and_nothing_half_written(job: Path, tmp_path: Path, name: str) -> None:
    option, make, words = CASES[name]
    changed = {option: make(tmp_path)}
    if option == "target_label":
        changed["label_column"] = "label"
    result = curate(job, tmp_path / "out", **changed)
    assert result.exit_code == 1, result.output
    for word in words:
        assert word in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if path.parent.name != "stages"], written


def test_nan_activations_name_the_row(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finescope.activations.layer import Layer

    real = Layer.__call__

    def broken(self: Any, ids: Any, mask: Any) -> Any:
        hidden = real(self, ids, mask)
        return hidden if ids.shape[0] <= 3 else hidden * float("nan")  # the layer was tried on so few

    monkeypatch.setattr(Layer, "__call__", broken)
    result = curate(job, tmp_path / "out")
    assert result.exit_code == 1
    assert "NaN" in result.stderr
    assert "corpus.jsonl:" in result.stderr
    assert not (tmp_path / "out" / "curated.jsonl").exists()


def test_rows_without_text_are_counted_and_never_selected(job: Path, tmp_path: Path) -> None:
    rows = [*rows_of("sky", 8), {"id": "blank", "text": "  ", "label": "sky"}]
    corpus = write_jsonl(tmp_path / "c.jsonl", rows)
    result = curate(job, tmp_path / "out", corpus=corpus)
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["rows_without_code"] == 1
    assert "blank" not in {row["id"] for row in curated(tmp_path / "out")}
    assert "want of text or latents: 1 row." in (tmp_path / "out" / "report.html").read_text()


def test_targets_in_the_corpus_are_left_out_by_id_and_by_text(job: Path, tmp_path: Path) -> None:
    seeds = rows_of("animals", 6, seed=1)
    copied = [{"id": f"copy-{row['id']}", "text": f" {row['text'].upper()}\n"} for row in seeds[:2]]
    corpus = write_jsonl(tmp_path / "c.jsonl", [*rows_of("sky", 8), *copied, seeds[3]])
    result = curate(job, tmp_path / "out", corpus=corpus)
    assert result.exit_code == 0, result.stderr
    picked = curated(tmp_path / "out")
    assert len(picked) == 8
    assert not {row["id"] for row in picked} & {"copy-animals-1-0", "copy-animals-1-1", "animals-1-3"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["targets_in_corpus"] == 3


def test_more_rows_wanted_than_there_are(job: Path, tmp_path: Path) -> None:
    result = curate(job, tmp_path / "out", report_rows=5)
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "fewer than the 100 asked for" in page
    assert "25 more selected rows" in page


def test_a_hostile_row_stays_text(job: Path, tmp_path: Path) -> None:
    evil = "cats </style><script>alert(1)</script> purr"
    corpus = write_jsonl(tmp_path / "c.jsonl", [*rows_of("sky", 8), {"id": "<b>x</b>", "text": evil}])
    assert curate(job, tmp_path / "out", corpus=corpus).exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_full_disk_leaves_no_half_written_result(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from finescope.storage import files

    real = files._flush

    def full(path: Path) -> None:
        if "curated" in path.name and path.is_file():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(files, "_flush", full)
    result = curate(job, tmp_path / "out")
    assert result.exit_code == 1
    assert "the disk is full" in result.stderr
    assert "curated.jsonl" in result.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if "curated" in path.name]
    monkeypatch.setattr(files, "_flush", real)
    assert curate(job, tmp_path / "out").exit_code == 0


def test_damaged_files_are_named(job: Path, tmp_path: Path) -> None:
    assert curate(job, tmp_path / "out").exit_code == 0
    scores = tmp_path / "out" / "scores.parquet"
    scores.write_bytes(scores.read_bytes()[:200])
    result = CliRunner().invoke(main, ["select", str(tmp_path / "out"), "-k", "3", "-q"])
    assert result.exit_code == 1
    assert "scores.parquet" in result.stderr
    (tmp_path / "out" / "manifest.json").unlink()
    result = CliRunner().invoke(main, ["select", str(tmp_path / "out")])
    assert "manifest.json is missing" in result.stderr


def test_a_corpus_changed_after_scoring_is_noticed(job: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", rows_of("sky", 12))
    assert curate(job, tmp_path / "out", corpus=corpus).exit_code == 0
    write_jsonl(corpus, rows_of("sky", 12, seed=5))
    result = CliRunner().invoke(main, ["select", str(tmp_path / "out"), "-k", "3", "-q"])
    assert result.exit_code == 1
    assert "has changed since it was scored" in result.stderr
