"""A run with several target sets: one pass, a folder a set that is a run by itself, rows as if alone."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finescope import InputError
from finescope.cli import main
from finescope.embeddings import CodeStore
from finescope.progress import Reporter
from finescope.storage.lock import FolderLock
from finescope.workflow.finished import open_run
from finescope.workflow.job import Job
from finescope.workflow.setrun import SetsRun, of_job
from finescope.workflow.stage import Stage
from finescope.workflow.stages.report import Report
from finescope.workflow.stages.sets import ScoreSets
from support.cli_job import rows_of, save_job, write_jsonl

SETS = ("animals", "sky")


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def good(*arguments: Any) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def given(folder: Path) -> list[Any]:
    places = ["--model", folder / "model", "--layer", "layers.0", "--corpus", folder / "corpus.jsonl"]
    return [*places, "-k", 12, "--draws", 0, "--set", "training.num_epochs=1", "--label-column", "label"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a file of targets of each of two sets, one with all of them, and a run with both sets."""
    folder = save_job(tmp_path_factory.mktemp("sets"))
    # One target of each set is a row of the corpus.
    rows = read(folder / "corpus.jsonl")
    own = {name: rows_of(name, 5, seed=2) for name in SETS}
    for name in SETS:
        own[name].append(next(row for row in rows if row["label"] == name))
        write_jsonl(folder / f"{name}.jsonl", own[name])
    together = [{**own[name][at], "topic": name} for at in range(6) for name in SETS]
    write_jsonl(folder / "both.jsonl", together)
    targets = [word for name in SETS for word in ("--targets", f"{name}={folder / name}.jsonl")]
    good("curate", *given(folder), *targets, "--out", folder / "run")
    return folder


def test_a_set_is_scored_and_selected_as_if_alone_on_the_same_codes(job: Path) -> None:
    run = job / "run"
    for name in SETS:
        other = next(other for other in SETS if other != name)
        place = run / "sets" / name
        alone = job / f"alone-{name}.parquet"
        good("score", run / "codes/corpus", place / "codes/targets", "--out", alone)
        table, rows, expected = (
            pq.read_table(path) for path in (place / "scores.parquet", run / "rows.parquet", alone)
        )
        assert table.column_names == ["score"]
        assert table["score"].to_pylist() == expected["score"].to_pylist()
        for column in ("index", "id", "tokens", "valid"):
            assert rows[column].to_pylist() == expected[column].to_pylist()
        seeds = {row["id"] for row in (*read(job / f"{name}.jsonl"), *read(job / f"{other}.jsonl"))}
        marked = rows["is_target"].to_numpy()
        assert {rows["id"][int(row)].as_py() for row in np.flatnonzero(marked)} == seeds & set(
            rows["id"].to_pylist()
        )
        score = np.where(marked, -np.inf, expected["score"].to_numpy())
        best = np.argsort(-score, kind="stable")[:12]
        chosen = read(place / "curated.jsonl")
        assert [row["id"] for row in chosen] == [rows["id"][int(row)].as_py() for row in best]
        assert [row["finescope_score"] for row in chosen] == score[best].tolist()
        for column in ("nearest_target", "nearest_similarity"):
            assert [row[f"finescope_{column}"] for row in chosen] == expected[column].take(best).to_pylist()


def test_a_column_says_of_which_set_a_target_is(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    column = ["--targets", job / "both.jsonl", "--target-set-column", "topic"]
    good("curate", *given(job), *column, "--out", out)
    assert json.loads((out / "sets.json").read_text())["sets"] == ["animals", "sky"]
    for name in SETS:
        assert read(out / "sets" / name / "curated.jsonl") == read(job / "run/sets" / name / "curated.jsonl")
    assert "scoring: done before" in good("curate", *given(job), *column, "--out", out).stderr
    good("explain", out / "sets/sky", "#3")
    write_jsonl(tmp_path / "none.jsonl", [*read(job / "both.jsonl"), {"id": "x", "text": "the old moons"}])
    column[1] = tmp_path / "none.jsonl"
    result = invoke("curate", *given(job), *column, "--out", tmp_path / "none")
    assert (result.exit_code, "none.jsonl:13: the target has no 'topic'" in result.stderr) == (1, True)


def test_a_folder_of_a_set_is_that_of_a_run(job: Path, tmp_path: Path) -> None:
    run = job / "run"
    found = json.loads(good("explain", run / "sets/sky", "#3", "--json").stdout)[0]
    table = pq.read_table(run / "sets/sky/scores.parquet")
    assert found["score"] == table["score"][3].as_py()
    assert sum(found["parts"].values()) + found["constant"] == pytest.approx(found["score"], abs=1e-12)
    assert "rows (" in good("latents", run / "sets/sky", "--top", 2).stdout
    said = good("diff", run / "sets/sky", run / "sets/animals").stdout
    assert f"selected in {run / 'sets/sky'}, 12 rows" in said
    good("export", run / "sets/sky", "--format", "scores", "--out", tmp_path / "sky.npy")
    marked = pq.read_table(run / "rows.parquet")["is_target"].to_numpy()
    scores = np.load(tmp_path / "sky.npy")
    assert (np.isneginf(scores) == marked).all()
    assert scores[~marked].tolist() == table["score"].to_numpy()[~marked].tolist()
    good("export", run / "sets/sky", "--format", "cossim", "--out", tmp_path / "sky_cossim.npy")
    cosines = np.load(tmp_path / "sky_cossim.npy")
    assert cosines.shape == (6, 120)
    good("export", run / "sets/sky", "--format", "atlas", "--out", tmp_path / "sky.parquet")
    atlas = pq.read_table(tmp_path / "sky.parquet")
    nearest = atlas["nearest_similarity"].to_numpy()
    np.testing.assert_allclose(cosines.max(axis=0), nearest, atol=1e-6)
    ids = [row["id"] for row in read(job / "sky.jsonl")]
    assert atlas["nearest_target"].to_pylist() == [ids[at] for at in cosines.argmax(axis=0)]
    assert (found["nearest"], found["similarity"]) == (atlas["nearest_target"][3].as_py(), nearest[3])
    shutil.copytree(run, tmp_path / "run")
    least = float(np.sort(nearest)[-9])
    good("select", tmp_path / "run/sets/sky", "--min-similarity", least)
    similar = [row["finescope_nearest_similarity"] for row in read(tmp_path / "run/sets/sky/curated.jsonl")]
    assert sorted(similar) == sorted(nearest[(nearest >= least) & ~marked])
    assert atlas["selected"].to_numpy().sum() == 12
    assert "average precision" in good("evaluate", run / "sets/sky", "--label-column", "label").stdout


def test_the_page_above_has_a_line_and_a_link_for_each(job: Path) -> None:
    page = (job / "run/report.html").read_text()
    for name in SETS:
        assert f'<a href="sets/{name}/report.html">{name}</a>' in page
        assert (job / "run/sets" / name / "report.html").is_file()
    assert "http" not in page.replace("Content-Security-Policy", "").replace("http-equiv", "")
    metrics = json.loads((job / "run/metrics.json").read_text())
    assert set(metrics["sets"]) == set(SETS)
    manifest = json.loads((job / "run/manifest.json").read_text())
    assert {name: each["counts"]["selected"] for name, each in manifest["sets"].items()} == dict.fromkeys(
        SETS, 12
    )


def test_selecting_again_is_for_all_sets_or_for_one(job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(job / "run", run)
    before = (run / "sets/animals/selection.parquet").read_bytes()
    good("select", run / "sets/sky", "-k", 3)
    assert len(read(run / "sets/sky/curated.jsonl")) == 3
    assert (run / "sets/animals/selection.parquet").read_bytes() == before
    result = invoke("select", run / "sets/sky", "--preset", "paper")
    assert (result.exit_code, "are scored together" in result.stderr) == (1, True)
    for option in (["--exclusive"], ["--no-exclusive"], ["--share", "sky=1"]):
        result = invoke("select", run / "sets/sky", *option)
        assert (result.exit_code, "share the rows out together" in result.stderr) == (1, True), option
    scored = (run / "rows.parquet").read_bytes()
    result = invoke("select", run, "--preset", "paper-v3")
    assert (result.exit_code, "needs an autoencoder that was trained for it" in result.stderr) == (1, True)
    assert (run / "rows.parquet").read_bytes() == scored
    result = invoke("explain", run, "#3")
    assert (result.exit_code, "holds the target sets animals, sky" in result.stderr) == (1, True)
    result = invoke("diff", run)
    assert (result.exit_code, "several target sets" in result.stderr) == (2, True)
    result = invoke("explain", run / "sets/sea", "#3")
    assert (result.exit_code, "no target set 'sea'; there are animals, sky" in result.stderr) == (1, True)

    good("select", run, "-k", 20, "--exclusive")
    chosen = {name: {row["id"] for row in read(run / "sets" / name / "curated.jsonl")} for name in SETS}
    assert [len(rows) for rows in chosen.values()] == [20, 20]
    assert not chosen["animals"] & chosen["sky"]
    result = invoke("select", run / "sets/sky", "-k", 3)
    assert (result.exit_code, "share the rows out" in result.stderr) == (1, True)
    said = good("select", run, "-k", 9, "--share", "animals=2", "--share", "sky=1").stdout
    assert f"all of them in {run / 'mixture.jsonl'}" in said
    mixture = read(run / "mixture.jsonl")
    assert [row["finescope_set"] for row in mixture].count("animals") == 6
    assert len(mixture) == 9
    result = invoke("select", run, "-k", 9, "--share", "animals=2")
    assert (result.exit_code, "each of the sets animals, sky" in result.stderr) == (1, True)
    good("select", run, "--no-exclusive")
    assert not (run / "mixture.jsonl").exists()
    assert [len(read(run / "sets" / name / "curated.jsonl")) for name in SETS] == [9, 9]

    scores = (run / "sets/sky/scores.parquet").read_bytes()
    good("select", run, "--preset", "paper")
    alone = tmp_path / "alone.parquet"
    good("score", run / "codes/corpus", run / "sets/sky/codes/targets", "--preset", "paper", "--out", alone)
    found = pq.read_table(run / "sets/sky/scores.parquet")
    assert (run / "sets/sky/scores.parquet").read_bytes() != scores
    assert found["score"].to_pylist() == pq.read_table(alone)["score"].to_pylist()


@pytest.mark.parametrize(
    ("below", "place"), [("", "sets/sky"), ("sets", "sky"), ("sets/sky", "."), ("sets/animals", "../sky")]
)
def test_a_set_is_named_from_wherever_one_stands(
    job: Path, below: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job / "run" / below)
    assert "score" in good("explain", place, "#3").stdout


def test_rows_that_are_targets_of_another_set_are_counted(job: Path, tmp_path: Path) -> None:
    targets = [word for name in SETS for word in ("--targets", f"{name}={job / name}.jsonl")]
    out = tmp_path / "run"
    shutil.copytree(job / "run", out)
    (out / "sets/sky/scorer.safetensors").unlink()
    said = good("curate", *given(job), *targets, "--out", out).stderr
    assert "scoring: done before" not in said
    words = "1 row with the text of a target and 1 row with the text or id of another set's target"
    for name in SETS:
        assert f"{name}: left out as targets themselves: {words}" in said
        assert words in (out / "sets" / name / "report.html").read_text().replace("&#39;", "'")
    assert json.loads((out / "sets/sky/metrics.json").read_text())["targets_in_corpus"] == 2


def test_two_runs_do_not_work_on_the_sets_of_one_folder(job: Path) -> None:
    with FolderLock(job / "run"):
        result = invoke("select", job / "run/sets/sky", "-k", 3)
    assert (result.exit_code, "another run" in result.stderr) == (1, True)


def test_what_is_left_out_of_the_default_is_said_of_each_set(job: Path, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "other.jsonl", [{"id": f"x{at}", "text": word} for at, word in enumerate("語猫犬")]
    )
    targets = ["--targets", f"sky={job}/sky.jsonl", "--targets", f"other={tmp_path}/other.jsonl"]
    said = good("curate", *given(job)[:-2], *targets, "--out", tmp_path / "run").stderr
    assert "other: default without tfidf: corpus and targets share no word" in said
    assert "sky: default without" not in said
    good("explain", tmp_path / "run/sets/other", "#3")


def test_quotas_by_label_in_a_run_say_what_they_could_not_fill(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quotas = ["--quota", "animals=1", "--quota", "sky=3", "-k", 16]
    alone = good("curate", *given(job), "--targets", job / "animals.jsonl", *quotas, "--out", out)
    labels = [row["label"] for row in read(out / "curated.jsonl")]
    assert (labels.count("animals"), labels.count("sky")) == (4, 12)
    assert "has no more rows" not in alone.stderr
    said = good("select", out, "--quota", "animals=3", "--quota", "sky=1", "-k", 80).stderr
    assert "label 'animals' has no more rows: 29 of its 60" in said
    assert "29 of its 60" in (out / "report.html").read_text()
    assert [row["label"] for row in read(out / "curated.jsonl")].count("sky") == 20
    of_sets = good("select", job / "run", *quotas).stderr
    assert "sky: selected 16 rows" in of_sets
    good("select", job / "run", "--quota", "sky=1", "-k", 12)
    assert {row["label"] for row in read(job / "run/sets/animals/curated.jsonl")} == {"sky"}


def test_what_a_job_may_say_of_sets(tmp_path: Path, job: Path) -> None:
    two = {"target_sets": ["a=x", "b=y"]}
    for wrong, words in (
        ({"target_sets": ["a=x"], "targets": "y"}, "leave targets"),
        ({"target_set_column": "topic"}, "name their file"),
        ({"targets": "y", "exclusive": True}, "go with several target sets"),
        ({"targets": "y", "shares": ["a=1"]}, "go with several target sets"),
        ({"target_sets": ["a=x", "a=y"]}, "two target_sets are called 'a'"),
        ({**two, "shares": ["a=1", "a=2"]}, "shares give two to the set 'a'"),
        ({**two, "shares": ["a=1"]}, "shares: give a share to each of the sets a, b; got a"),
        ({**two, "shares": ["a=1", "b=1", "c=2"]}, "to each of the sets a, b; got a, b, c"),
        ({**two, "shares": ["a=1", "b=1"], "selection": {"min_score": 0.5}}, "shares are of a whole"),
        ({"label_column": "l", "selection": {"quotas": ["a=1"], "min_similarity": 0.5}}, "of a whole"),
        ({"label_column": "l", "selection": {"quotas": ["a=1", "a=2"]}}, "two shares to the label 'a'"),
        ({"selection": {"quotas": ["a=1"]}}, "selection.quotas are labels: name their column"),
        ({"target_labels": ["a"]}, "target_labels are labels: name their column"),
    ):
        with pytest.raises(InputError, match=words):
            Job.from_dict(wrong)
    assert of_job(Job.from_dict(two)) is SetsRun
    assert of_job(Job.from_dict({"targets": "y", "target_set_column": "topic"})) is SetsRun
    Job(label_column="l", selection={"quotas": ["a=1", "b=0.5"]})  # of the 100 rows without any limit
    Job.from_dict({**two, "shares": ["b=1", "a=1e3"], "selection": {"token_budget": 9}})
    base = ["curate", *given(job), "--out", tmp_path / "run"]
    place = job / "sky.jsonl"
    for options, code, words in (
        (["--targets", place, "--targets", job / "animals.jsonl"], 2, "Several target sets need names"),
        (["--targets", f"a={place}", "--targets", f"a={place}"], 2, "two target_sets are called 'a'"),
        (["--targets", f"rows={place}"], 2, "'mixture' and 'rows' are files of all sets together"),
        (["--targets", f"a={tmp_path / 'none.jsonl'}"], 1, "none.jsonl"),
        (["--targets", place, "--quota", "sky", "-k", 3], 2, "selection.quotas must be texts of the form"),
        (["--targets", place, "--share", "sky", "-k", 3], 2, "shares must be texts of the form NAME=X"),
    ):
        result = invoke(*base, *options)
        assert (result.exit_code, words in result.stderr) == (code, True), (options, result.stderr)
    config = {"target_sets": [f"{name}={job / name}.jsonl" for name in SETS], "model": "m", "corpus": ["c"]}
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    made = Job.from_dict(config)
    assert made.to_dict()["target_sets"] == config["target_sets"]


def test_what_targets_say_of_their_sets_is_tried_before_the_corpus_is_read(job: Path, tmp_path: Path) -> None:
    """Whatever can only fail after hours otherwise: the corpus, which is broken, isn't looked at."""
    (tmp_path / "broken.jsonl").write_text("no row\n")
    rows = read(job / "both.jsonl")
    base = [*given(job), "--corpus", tmp_path / "broken.jsonl", "--out", tmp_path / "run"]
    column = ["--targets", tmp_path / "targets.jsonl", "--target-set-column", "topic"]
    for targets, options, words in (
        ([*rows, {"id": "x", "text": "the old moons"}], [], "targets.jsonl:13: the target has no 'topic'"),
        ([*rows, {"id": "x", "text": "the old moons", "topic": "rows"}], [], "can't be the name of a target"),
        (rows, ["--share", "sky=1"], "give a share to each of the sets animals, sky; got sky"),
    ):
        write_jsonl(tmp_path / "targets.jsonl", targets)
        result = invoke("curate", *base, *column, *options)
        assert (result.exit_code, words in result.stderr) == (1, True), result.stderr
    write_jsonl(tmp_path / "targets.jsonl", rows)
    result = invoke("curate", *base, *column, "--chat-template", tmp_path / "none.jinja")
    assert (result.exit_code, "none.jinja can't be read" in result.stderr) == (1, True)
    assert "broken.jsonl" in invoke("curate", *base, *column).stderr


def test_a_set_whose_targets_have_no_label_is_named_before_the_model_runs(job: Path, tmp_path: Path) -> None:
    bare = [{"id": row["id"], "text": row["text"]} for row in read(job / "sky.jsonl")]
    write_jsonl(tmp_path / "bare.jsonl", bare)
    targets = ["--targets", f"animals={job}/animals.jsonl", "--targets", f"sky={tmp_path}/bare.jsonl"]
    result = invoke("curate", *given(job), *targets, "--out", tmp_path / "run")
    assert (result.exit_code, "the targets (bare.jsonl) have no column" in result.stderr) == (1, True)
    assert not (tmp_path / "run/activations").exists()


def test_what_was_learned_in_scoring_is_read_anew_when_a_stage_has_written_it_anew(
    job: Path, tmp_path: Path
) -> None:
    """Nobody tells the context, which stages change nothing of."""
    shutil.copytree(job / "run", tmp_path / "run")
    run = open_run(tmp_path / "run", Reporter(quiet=True))
    assert isinstance(run, SetsRun)
    context = run.context
    before = (context.spaces, context.row_table, *(each.scoring for each in context.sets.values()))
    assert (context.spaces, context.row_table, *(each.scoring for each in context.sets.values())) == before
    held = {name: value for name, value in vars(context).items() if name != "_kept"}
    ScoreSets().work(context)
    assert {name: value for name, value in vars(context).items() if name != "_kept"} == held
    after = (context.spaces, context.row_table, *(each.scoring for each in context.sets.values()))
    assert not any(one is other for one, other in zip(after, before, strict=True))
    assert all(each.scoring.spaces is context.spaces for each in context.sets.values())


def test_pages_of_all_sets_take_one_pass_and_are_those_of_each_alone(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(job / "run", tmp_path / "run")
    run = open_run(tmp_path / "run", Reporter(quiet=True), {"draws": 3})
    assert isinstance(run, SetsRun)
    stream: Callable[..., Iterator[Any]] = CodeStore.stream
    passes: Counter[str] = Counter()
    stage: Callable[..., bool] = Stage.run
    now = [""]

    def streaming(store: CodeStore, *arguments: Any, **named: Any) -> Iterator[Any]:
        passes[now[0]] += store.directory.name == "corpus"
        yield from stream(store, *arguments, **named)

    def running(of: Stage, context: Any) -> bool:
        now[0] = type(of).__name__
        return stage(of, context)

    monkeypatch.setattr(CodeStore, "stream", streaming)
    monkeypatch.setattr(Stage, "run", running)
    run.finish()
    assert passes["ReportSets"] == 1
    assert passes["Evaluate"] == 1 + len(SETS)  # what rows hold a latent, once; each set's comparison
    for name, each in run.context.sets.items():
        page = tmp_path / "run/sets" / name / "report.html"
        written = page.read_bytes()
        page.unlink()
        Report().work(each)
        assert page.read_bytes() == written


def test_the_python_interface(job: Path) -> None:
    run = open_run(job / "run", Reporter(quiet=True), {"selection": {"k": 4}})
    assert isinstance(run, SetsRun)
    outcome = run.reselect()
    assert {name: len(of_set.selection) for name, of_set in outcome.sets.items()} == dict.fromkeys(SETS, 4)
    table, alone = outcome.sets["sky"].scored.table, run.context.sets["sky"].scoring.score()
    for column, values in alone.columns().items():
        np.testing.assert_array_equal(table.columns()[column], values)
    assert outcome.metrics["sets"]["sky"]["selected"] == 4
