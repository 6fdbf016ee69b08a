"""Real corpora through the whole command: nothing dies after the expensive hours, and what is odd is said.

Fails if: a row that a template refuses ends the run, or is found only by the model; a row with a target's id
is taken for the target; repeated ids can't be read; what a run left out isn't said; a format can't be chosen.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from support.cli_job import rows_of, save_tiny_model, write_jsonl

REFUSES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }} {% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("seeds") / "seeds.jsonl", rows_of("animals", 4, seed=1))


def _curate(model: Path, seeds: Path, corpus: Path, *more: Any) -> Result:
    quick = ["--set", "training.num_epochs=1", "--draws", "0", "--report-rows", "2", "-k", "3"]
    quick += ["--device", "cpu", "--layer", "layers.0", "--out", corpus.parent / "out"]
    arguments = ["curate", "--model", model, "--targets", seeds, "--corpus", corpus, *quick, *more]
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def _rows() -> list[dict[str, Any]]:
    return rows_of("animals", 6) + rows_of("sky", 12)


def _chats() -> list[dict[str, Any]]:
    rows = [
        {
            "id": row["id"],
            "messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": row["text"]}],
        }
        for row in _rows()
    ]
    rows[10]["messages"].append({"role": "assistant", "content": "very small"})
    return rows


def test_a_refused_conversation_is_counted_and_read_as_plain_lines(
    tmp_path: Path, model: Path, seeds: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(REFUSES)
    corpus = write_jsonl(tmp_path / "chat.jsonl", _chats())
    stopped = _curate(model, seeds, corpus, "--chat-template", template, "--refused-chats", "stop")
    assert stopped.exit_code == 1
    assert "chat.jsonl:11: the chat template refuses the conversation: roles must alternate" in stopped.stderr
    assert not (tmp_path / "out" / "sae").exists(), "found in the first pass"
    done = _curate(model, seeds, corpus, "--chat-template", template)
    assert done.exit_code == 0, done.stderr
    assert (
        "read as plain lines, because the chat template refuses them: 1 conversation, the first at "
        "chat.jsonl:11 (roles must alternate)" in done.stderr
    )
    assert (
        "because the chat template refuses them: 1 conversation"
        in (tmp_path / "out" / "report.html").read_text()
    )
    other = _curate(model, seeds, corpus, "--chat-template", "plain")
    assert other.exit_code == 1
    assert "holds the" in other.stderr, "another rendering is another run"
    absent = _curate(model, seeds, corpus, "--chat-template", tmp_path / "none.jinja")
    assert absent.exit_code == 1
    assert "the chat template" in absent.stderr
    assert "can't be read: No such file" in absent.stderr


def test_text_decides_who_is_a_target(tmp_path: Path, model: Path) -> None:
    rows, seeds = _rows(), rows_of("animals", 4, seed=1)
    for number, row in enumerate(rows):
        row["id"] = str(number)  # as those of any file
    for number, seed in enumerate(seeds):
        seed["id"] = str(number)
    rows[7]["text"] = f"  {seeds[2]['text'].upper()} "
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    done = _curate(model, write_jsonl(tmp_path / "seeds.jsonl", seeds), corpus)
    assert done.exit_code == 0, done.stderr
    assert "left out as targets themselves: 1 row with the text of a target" in done.stderr
    assert "not left out: 4 rows with the id of a target but another text" in done.stderr
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert [
        id_
        for id_, mark in zip(*scores.select(["id", "is_target"]).to_pydict().values(), strict=True)
        if mark
    ] == ["7"]
    assert "another text" in (tmp_path / "out" / "report.html").read_text()
    codes = tmp_path / "out" / "codes"
    alone = ["score", codes / "corpus", codes / "targets", "--out", tmp_path / "alone.parquet"]
    done = CliRunner().invoke(main, [str(argument) for argument in alone], catch_exceptions=False)
    assert "left out as targets themselves: 1 row with the text of a target" in done.stderr
    assert "not left out: 4 rows with the id of a target but another text" in done.stderr
    assert pq.read_table(tmp_path / "alone.parquet")["is_target"].equals(scores["is_target"])


def test_repeated_ids_can_be_read_under_numbers_and_written_as_parquet(
    tmp_path: Path, model: Path, seeds: Path
) -> None:
    rows = [{**row, "id": "same"} for row in _rows()]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    refused = _curate(model, seeds, corpus)
    assert refused.exit_code == 1
    assert "number the rows with --id-column none" in refused.stderr
    done = _curate(model, seeds, corpus, "--id-column", "none", "--format", "parquet")
    assert done.exit_code == 0, done.stderr
    table = pq.read_table(tmp_path / "out" / "curated.parquet")
    assert table["id"].to_pylist() == ["same"] * 3
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")
    assert scores["id"].to_pylist()[:2] == ["corpus:0", "corpus:1"]
    again = CliRunner().invoke(main, ["select", str(tmp_path / "out"), "-k", "2", "--format", "jsonl.gz"])
    assert again.exit_code == 0, again.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("curated.*")) == ["curated.jsonl.gz"]


def test_a_folder_of_nested_rows_beside_other_things(tmp_path: Path, model: Path, seeds: Path) -> None:
    data = tmp_path / "data"
    (data / "lang=en").mkdir(parents=True)
    nested = [{"id": row["id"], "doc": {"text": row["text"]}, "label": row["label"]} for row in _rows()]
    (data / "lang=en" / "part.json").write_text(json.dumps(nested[:9], indent=1))
    write_jsonl(data / "more.jsonl", nested[9:])
    (data / "dataset_info.json").write_text('{"mine": {}}')
    done = _curate(
        model, seeds, data, "--text-column", "doc.text", "--label-column", "lang", "--target-label", "en"
    )
    assert done.exit_code == 0, done.stderr
    assert (
        "left out of lang=en/part.json and 1 more: dataset_info.json (one object without text)" in done.stderr
    )
    stages = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    assert stages["embed-corpus"]["left_out"] == ["dataset_info.json (one object without text)"]
    curated = [json.loads(line) for line in (tmp_path / "out" / "curated.jsonl").read_text().splitlines()]
    originals = {row["id"]: row for row in nested}
    for row in curated:
        kept = {
            name: value for name, value in row.items() if not name.startswith("finescope_") and name != "lang"
        }
        assert kept == originals[row["id"]]
        assert row.get("lang") == ("en" if originals[row["id"]] in nested[:9] else None)


def test_files_of_several_formats_are_one_corpus_and_said_to_be(
    tmp_path: Path, model: Path, seeds: Path
) -> None:
    data, rows = tmp_path / "data", _rows()
    data.mkdir()
    write_jsonl(data / "b.jsonl", rows[9:])
    with open(data / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:9])
    for name in ("LICENSE", "README.md", "a.txt"):
        (data / name).write_text("x")
    (data / "rows.csv").write_text("file,rows\na.csv,9\n")
    done = _curate(model, seeds, data)
    assert done.exit_code == 0, done.stderr
    assert "files of several formats, all of which are read: 1 .csv, 1 .jsonl" in done.stderr
    assert "left out of a.csv and 1 more: rows.csv (a table without text)" in done.stderr
    assert pq.read_table(tmp_path / "out" / "scores.parquet")["id"].to_pylist() == [row["id"] for row in rows]


def test_the_output_may_lie_beside_the_rows(tmp_path: Path, model: Path, seeds: Path) -> None:
    """What a run has written is none of the rows of the next, nor of its own workers."""
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist(_rows()), data / "rows.parquet")
    folders = ["run", "run", "other"]
    for number, folder in enumerate(folders):
        done = _curate(model, seeds, data, "--out", data / folder, "-k", 3 + number, "--workers", 2)
        assert done.exit_code == 0, done.stderr
        assert f"{len(_rows())} rows of rows.parquet against" in done.stderr
        assert ("left out of rows.parquet: run (work of FineScope)" in done.stderr) == (number > 0)
        assert len(pq.read_table(data / folder / "curated.parquet")) == 3 + number


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path, model: Path, seeds: Path) -> None:
    """Its rows would count twice, and one of them could be chosen twice."""
    data = tmp_path / "data"
    data.mkdir()
    corpus = write_jsonl(data / "corpus.jsonl", _rows())
    (tmp_path / "link").symlink_to(data)
    for again in (corpus, data, data / "*.jsonl", tmp_path / "link", f"file://{corpus}"):
        refused = _curate(model, seeds, corpus, "--corpus", again)
        assert refused.exit_code == 1
        assert "corpus.jsonl is named twice, and its rows would count twice" in refused.stderr


def test_files_of_one_name_with_other_rows_are_said(tmp_path: Path, model: Path, seeds: Path) -> None:
    data, rows = tmp_path / "data", _rows()
    data.mkdir()
    write_jsonl(data / "a.jsonl", rows[9:])
    write_jsonl(data / "a.ndjson", rows[:9])
    done = _curate(model, seeds, data)
    assert done.exit_code == 0, done.stderr
    assert "a.jsonl and a.ndjson differ, so both are read" in done.stderr


def test_what_could_fail_in_writing_is_found_before_the_model_runs(
    tmp_path: Path, model: Path, seeds: Path
) -> None:
    rows = _rows()
    rows[3]["odd"], rows[4]["odd"] = 1, "one"  # type: ignore[assignment]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    refused = _curate(model, seeds, corpus, "--format", "parquet")
    assert refused.exit_code == 1
    assert "column 'odd' can't be written as Parquet" in refused.stderr
    assert not (tmp_path / "out" / "activations").exists()
    template = tmp_path / "text.jinja"
    template.write_text("{{ text }} {{ label }}")
    done = _curate(model, seeds, corpus, "--text-template", template)
    assert done.exit_code == 0, done.stderr
