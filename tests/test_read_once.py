"""A corpus is read and hashed once by the pass that checks it; what comes after the codes reads no text.

Fails if: a file is hashed apart from being read; scoring, choosing again or evaluating goes through the
texts, be it for the words of TF-IDF; labels, lengths, words or hashes of texts that stand beside the codes
differ from those of the rows; a folder whose codes stand without words can't be evaluated any more.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finescope.corpus import Corpus, Row, open_corpus
from finescope.curation import text_hash
from finescope.curation.scoring.words import Words
from finescope.embeddings import CodeStore
from finescope.errors import StoreError
from finescope.progress import Reporter
from finescope.storage.lock import FolderLock
from finescope.workflow.context import Context
from finescope.workflow.finished import open_run
from finescope.workflow.job import Job
from finescope.workflow.run import Run
from finescope.workflow.stage import Stage
from finescope.workflow.stages.evaluate import Evaluate
from finescope.workflow.stages.score import Score
from support.cli_job import save_job

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_job(tmp_path_factory.mktemp("job"), animals=20, sky=40)


def job(folder: Path, out: Path, **settings: Any) -> Job:
    asked = {
        "model": str(folder / "model"), "layer": "layers.0", "targets": str(folder / "seeds.jsonl"),
        "corpus": [str(folder / "corpus.jsonl")], "out": str(out), "device": "cpu", "draws": 0,
        "training": {"num_epochs": 1}, "selection": {"k": 5}, "report_rows": 3, **settings,
    }  # fmt: skip
    return Job.from_dict(asked)


class Watched:
    """Counts, by stage, the rows of the corpus that are parsed, and the files hashed by themselves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows: Counter[str] = Counter()
        self.passes: Counter[str] = Counter()
        self.hashed: list[str] = []
        self.stage = ""
        self._patch(patch)

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        from finescope.corpus import files

        parse: Callable[..., Iterator[Row]] = Corpus._parse
        parse_from: Callable[..., Iterator[Row]] = Corpus.rows_from
        run: Callable[..., bool] = Stage.run
        hashing: Callable[..., str] = files.sha256_file

        def counted(corpus: Corpus, rows: Iterator[Row]) -> Iterator[Row]:
            if corpus.name == "corpus.jsonl":
                self.passes[self.stage] += 1
            for row in rows:
                if corpus.name == "corpus.jsonl":
                    self.rows[self.stage] += 1
                yield row

        def parsing(corpus: Corpus, *arguments: Any, **named: Any) -> Iterator[Row]:
            return counted(corpus, parse(corpus, *arguments, **named))

        def parsing_from(corpus: Corpus, *arguments: Any, **named: Any) -> Iterator[Row]:
            return counted(corpus, parse_from(corpus, *arguments, **named))

        def running(stage: Stage, context: Any) -> bool:
            self.stage = stage.name
            return run(stage, context)

        def hashed(path: Any) -> str:
            self.hashed.append(Path(path).name)
            return hashing(path)

        patch.setattr(Corpus, "_parse", parsing)
        patch.setattr(Corpus, "rows_from", parsing_from)
        patch.setattr(Stage, "run", running)
        patch.setattr(files, "sha256_file", hashed)


WORDS = {"scorer": "contrast+tfidf", "label_column": "label"}
"""Settings with which words are looked at, by the scores and by the table of methods."""


@pytest.mark.parametrize("settings", [{}, {"label_column": "label"}, WORDS], ids=["codes", "table", "words"])
@pytest.mark.parametrize("quiet", [True, False])
def test_texts_are_read_by_what_needs_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], quiet: bool
) -> None:
    watched = Watched(monkeypatch)
    Run(job(folder, tmp_path / "out", **settings), Reporter(quiet=quiet)).curate()
    assert dict(watched.rows).keys() <= {"check", "activations", "embed-corpus", "report"}
    assert [watched.passes[name] for name in ("check", "activations", "embed-corpus")] == [1, 1, 1]
    assert [watched.rows[name] for name in ("score", "select", "evaluate", "manifest")] == [0] * 4
    assert "corpus.jsonl" not in watched.hashed, "the pass that checks the rows hashes them"
    watched.rows.clear()
    open_run(tmp_path / "out", QUIET, {"selection": {"k": 7}, "preset": "paper"}).reselect()
    assert dict(watched.rows).keys() <= {"report"}
    assert "corpus.jsonl" not in watched.hashed
    watched.rows.clear()
    Run(job(folder, tmp_path / "out", **settings), QUIET).curate()
    assert dict(watched.rows).keys() <= {"check", "report"}
    assert watched.rows["check"] == 60


def test_scores_and_metrics_need_no_readable_row(folder: Path, tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "seeds.jsonl"):
        shutil.copy(folder / name, tmp_path / name)
    asked = job(folder, tmp_path / "out", **WORDS, corpus=[str(tmp_path / "corpus.jsonl")],
                targets=str(tmp_path / "seeds.jsonl"), draws=3)  # fmt: skip
    Run(asked, QUIET).curate()
    written = [tmp_path / "out" / name for name in ("scores.parquet", "metrics.json")]
    before = [path.read_bytes() for path in written]
    for path in written:
        path.unlink()
    for name in ("corpus.jsonl", "seeds.jsonl"):
        (tmp_path / name).write_bytes(b"\xff\xfe no row of any kind")
    for stage in (Score(), Evaluate()):
        stage.work(Context(asked, QUIET))
    assert [path.read_bytes() for path in written] == before


def test_codes_without_words_get_them_from_the_texts_and_say_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(job(folder, tmp_path / "out", **WORDS), QUIET).curate()
    metrics = (tmp_path / "out" / "metrics.json").read_bytes()
    for name in ("corpus", "targets"):  # as codes were written before words were kept
        path = tmp_path / "out" / "codes" / name / "manifest.json"
        manifest = json.loads(path.read_text())
        for shard in manifest["shards"]:
            del shard["words"]
        path.write_text(json.dumps(manifest))
    watched = Watched(monkeypatch)
    (tmp_path / "out" / "metrics.json").unlink()
    open_run(tmp_path / "out", Reporter(), {}).reselect()
    assert watched.passes["evaluate"] + watched.passes["select"] == 1
    assert (
        capsys.readouterr().err.count("codes/corpus holds no words: reading the texts of corpus.jsonl") == 1
    )
    assert (tmp_path / "out" / "metrics.json").read_bytes() == metrics


def test_what_stands_beside_the_codes_is_that_of_the_rows(folder: Path, tmp_path: Path) -> None:
    Run(job(folder, tmp_path / "out", label_column="label"), QUIET).curate()
    rows = list(open_corpus(folder / "corpus.jsonl").rows())
    store = CodeStore(tmp_path / "out" / "codes/corpus")
    assert store.labels("label") == [row.record["label"] for row in rows]
    assert store.labels("id") is None
    assert store.text_hashes() == [text_hash(row.content) for row in rows]
    assert store.table(["characters"])["characters"].to_pylist() == [len(row.content) for row in rows]
    kept = store.words()
    assert kept is not None
    words = Words(kept)
    for row, counts in zip(rows, words.take(np.arange(len(rows))).to_dense().tolist(), strict=True):
        said = Counter(word for word in row.content.split() if len(word) > 1)
        assert said == {word: count for word, count in zip(words.vocabulary, counts, strict=True) if count}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["labels"]["relevant_rows"] == 20


def test_labels_named_later_are_read_from_the_rows(folder: Path, tmp_path: Path) -> None:
    Run(job(folder, tmp_path / "out"), QUIET).curate()
    assert CodeStore(tmp_path / "out" / "codes/corpus").labels("label") is None
    changed = open_run(tmp_path / "out", QUIET, {"label_column": "label", "target_labels": ["sky"]})
    assert changed.reselect().metrics["labels"]["relevant_rows"] == 40
    again = Run(job(folder, tmp_path / "out", label_column="label"), QUIET).curate()
    assert again.metrics["labels"]["relevant_rows"] == 20


def test_two_runs_never_work_in_one_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FolderLock(out), pytest.raises(StoreError, match=rf"another run is writing to {out}"):
        Run(job(folder, out), QUIET).curate()
    assert list(out.iterdir()) == []
