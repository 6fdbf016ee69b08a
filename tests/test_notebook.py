"""Results in notebooks: the first rows in plain words, and of strangers' texts nothing but the text.

Fails if: markup or a script in an id, a label or a text comes to life; a style sheet or a colour of ours
stands in the way of the notebook's own; rows aren't the first ones; numbers aren't those of the result.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finescope.curation import average_results
from finescope.html.notebook import ROWS, TEXT, notebook
from finescope.html.plain import plain
from finescope.progress import Reporter
from finescope.workflow.run import Outcome
from finescope.workflow.setrun import SetsOutcome, of_job
from support.cli_job import rows_of, save_tiny_model, write_jsonl
from support.html import Page
from support.results import comparison, results, scores, selection
from support.run_files import job_of

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"&\u202egnp.exe\x00{{ 7*7 }}'
TAGS = {"div", "p", "strong", "br", "table", "caption", "thead", "tbody", "tr", "th", "td"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, SetsOutcome]:
    """A run, and one with two target sets, over rows with evil ids and texts."""
    folder = tmp_path_factory.mktemp("evil")
    save_tiny_model(folder / "model")
    animals, sky = rows_of("animals", 20), rows_of("sky", 30)
    for number, row in enumerate(animals):
        row |= {"id": f"{EVIL} id {number}", "text": f"{row['text']} {EVIL} {'purr ' * 100}"}
    write_jsonl(folder / "corpus.jsonl", animals + sky)
    for topic in ("animals", "sky"):
        seeds = [row | {"id": f"{EVIL} {row['id']}"} for row in rows_of(topic, 5, seed=1)]
        write_jsonl(folder / f"{topic}.jsonl", seeds)
    found = []
    for targets in (
        {"targets": str(folder / "animals.jsonl")},
        {"targets": "", "target_sets": [f"{topic}={folder / topic}.jsonl" for topic in ("animals", "sky")]},
    ):
        job = job_of(folder, folder / f"run-{len(found)}", **targets, selection={"k": 12}, label_column=None)
        found.append(of_job(job)(job, Reporter(quiet=True)).curate())
    return found[0], found[1]


@pytest.fixture(scope="module")
def shown(outcomes: tuple[Outcome, SetsOutcome]) -> dict[str, str]:
    one, several = outcomes
    return {
        **results(EVIL),
        "Outcome": one._repr_html_(),
        "SetsOutcome": several._repr_html_(),
        "Outcome of a set": several.sets["sky"]._repr_html_(),
    }


def cells(html: str) -> list[list[str]]:
    """What stands in the rows of the table, the heading first."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


KINDS = [
    "ScoreTable", "Selection", "empty Selection", "RowScores", "Comparison", "MethodResult",
    "CurationResults", "SparseCodes", "empty SparseCodes", "SparseAutoencoder",
    "Outcome", "SetsOutcome", "Outcome of a set",
]  # fmt: skip


def test_every_kind_is_looked_at(shown: dict[str, str]) -> None:
    assert list(shown) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_stranger_comes_to_life(shown: dict[str, str], kind: str) -> None:
    page = Page(shown[kind])
    assert {tag for tag, _ in page.tags} <= TAGS
    assert {name for _, attributes in page.tags for name in attributes} <= {
        "style", "dir", "scope", "tabindex", "role", "aria-label",
    }  # fmt: skip
    for style in page.all("style"):
        assert not re.search(r"url\(|expression|#[0-9a-fA-F]{3}", style)
    said = "".join(page.data)
    assert plain(said) == said
    if kind in ("ScoreTable", "RowScores", "Comparison", "MethodResult", "SparseAutoencoder", "Outcome"):
        assert plain(EVIL) in said


@pytest.mark.parametrize("kind", KINDS)
def test_one_table_of_the_first_rows_is_named_and_headed(shown: dict[str, str], kind: str) -> None:
    page = Page(shown[kind])
    tables = [tag for tag, _ in page.tags].count("table")
    assert tables == (not kind.startswith("empty"))
    assert len(page.inside["strong"]) == 1
    if tables:
        assert page.inside["caption"][0].strip()
        assert {attributes["scope"] for tag, attributes in page.tags if tag == "th"} == {"col", "row"}
        assert [attributes for tag, attributes in page.tags if attributes.get("tabindex") == "0"] == [
            {**attributes, "role": "group", "aria-label": page.inside["caption"][0]}
            for tag, attributes in page.tags
            if "tabindex" in attributes
        ]


def test_scores_are_shown_best_first_without_those_that_have_none() -> None:
    table = scores(60)
    table.score[:] = table.score[::-1].copy()
    table.score[50] = table.score[40]
    head, *rows = cells(table._repr_html_())
    assert head == ["place", "row", "score", "nearest target", "its cosine"]
    best = table.ranking()[:ROWS]
    assert [row[:3] for row in rows] == [
        [str(place), str(row), f"{table.score[row]:.4f}"] for place, row in enumerate(best.tolist(), start=1)
    ]
    assert "and 42 more" in table._repr_html_()
    assert "never selected, for want of a code: 8 rows" in table._repr_html_()


@pytest.mark.parametrize("count", [0, 1, 5, 9, 10, 11, 52, 99])
def test_the_best_rows_are_the_first_of_the_ranking(count: int) -> None:
    table = scores(60)
    table.score[:] = np.round(np.random.default_rng(0).random(60), 1)  # with ties
    table.score[3] = np.nan
    np.testing.assert_array_equal(table.best(count), table.ranking()[:count])


def test_a_selection_says_what_became_of_the_others() -> None:
    html = selection(60)._repr_html_()
    head, first, second, *_ = cells(html)
    assert head == ["rank", "row", "left out because they resemble it"]
    assert (first, second) == (["1", "0", "0"], ["2", "1", "1"])
    assert "25 rows selected of 60" in html
    assert "4,321 tokens" in html
    assert "not selected: 27 beyond limit, 8 invalid" in html
    assert "and 15 more" in html


def test_methods_are_a_list_that_is_shown_as_a_table() -> None:
    table = comparison("default")
    assert isinstance(table, list)
    head, *rows = cells(table._repr_html_())
    assert head == ["method", "average precision", "95 % interval", "precision@10", "lift@10", "what it is"]
    assert rows[0] == ["default", "0.689", "0.580 – 0.798", "0.900", "–", "what default does"]
    assert cells(average_results([table, table])._repr_html_())[0] == head


def test_an_outcome_shows_ids_targets_and_texts(outcomes: tuple[Outcome, SetsOutcome]) -> None:
    one, several = outcomes
    head, *rows = cells(one._repr_html_())
    assert head == ["rank", "id", "score", "nearest target", "its cosine", "text"]
    assert len(rows) == ROWS
    assert "and 2 more" in one._repr_html_()
    told = one.scored.at(one.selection.indices)
    assert [row[2] for row in rows] == [f"{score:.4f}".replace("-", "−") for score in told.table.score[:ROWS]]
    assert all(len(row[5]) <= TEXT + 100 and row[5].endswith("…") for row in rows if "script" in row[5])
    assert any("script" in row[5] for row in rows)
    assert "12 rows selected of 50 for 5 targets" in one._repr_html_()
    assert "text" not in cells(replace(one, job=None)._repr_html_())[0]
    assert [row[:3] for row in cells(several._repr_html_())[1:]] == [
        ["animals", "5", "12"],
        ["sky", "5", "12"],
    ]


def test_an_outcome_whose_files_are_gone_says_so(
    outcomes: tuple[Outcome, SetsOutcome], tmp_path: Path
) -> None:
    gone = replace(outcomes[0], folder=tmp_path)
    assert "scores.parquet does not exist" in gone._repr_html_()
    gone = replace(outcomes[0], curated=tmp_path / "curated.jsonl")
    assert str(tmp_path / "curated.jsonl") in gone._repr_html_()


def test_columns_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        notebook("t", {"a": [1, 2], "b": [1]})
