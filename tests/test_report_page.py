"""The report shows text that strangers wrote: it may not run it, load anything, or be rearranged by it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from finescope.html.plain import plain
from finescope.report.data import About, Measured, Passage
from finescope.report.figures import draw
from finescope.report.page import render
from support.html import Page
from support.runs import a_run

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"&\u202egnp.exe\x00\ud800{{ 7*7 }}'
SHOWN = plain(EVIL)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plots")
    data = a_run(name=lambda what: f"{EVIL} {what}", text=f"{EVIL} row text\nsecond\tline")
    long = replace(data.rows[1], passage=Passage("long", EVIL + " long text" * 1900, 99_999))
    data = replace(data, rows=[data.rows[0], long, *data.rows[2:]])
    return render(data, draw(data, folder))


def test_no_foreign_markup_survives(evil: str) -> None:
    page = Page(evil)
    names = {name for name, _ in page.tags}
    assert not names & {
        "iframe", "object", "embed", "link", "base", "img", "audio", "video", "foreignobject", "animate",
    }  # fmt: skip
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert [name for name, _ in page.tags].count("script") == 1


@pytest.mark.parametrize(
    "what",
    [
        "title", "subtitle", "asked", "answer", "warning", "method", "averaged method", "setting", "value",
        "label", "other label", "column", "domain", "row text", "target id", "target text", "words",
        "example id", "example text", "id 1",
    ],
)  # fmt: skip
def test_foreign_text_is_shown_as_it_is(evil: str, what: str) -> None:
    if what.startswith("id "):
        what = re.search(r"id \d+", evil)[0]  # type: ignore[index]
    shown = SHOWN
    if what in ("setting", "value"):
        shown = plain(json.dumps(EVIL, ensure_ascii=False))[1:-1]
    assert any(f"{shown} {what}" in data for data in Page(evil).data)


def test_no_request_leaves_the_page(evil: str) -> None:
    page = Page(evil)
    loaded = page.all(
        "src", "srcset", "action", "poster", "background", "ping", "formaction", "data", "xlink:href"
    )
    assert not loaded
    targets = page.all("href")
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    images = [attributes["href"] for name, attributes in page.tags if name == "image"]
    assert images
    assert all(base64.b64decode(str(image).partition(",")[2]).startswith(b"\x89PNG") for image in images)
    for style in [*page.inside["style"], *page.all("style")]:
        assert not re.search(r"https?:|@import|url\((?!#)", style)


def test_the_policy_names_the_one_script(evil: str) -> None:
    page = Page(evil)
    script = "".join(page.inside["script"])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (
        attributes["content"] for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"


def test_characters_that_reorder_or_break_the_page_are_replaced(evil: str) -> None:
    assert not set(evil) & {"\u202e", "\x00", "\ud800"}
    evil.encode("utf-8")
    assert plain("a\u200db क्‍ष") == "a\u200db क्‍ष"  # joiners carry meaning
    assert plain("one\r\n\ttwo\rthree") == "one\n\ttwo\ufffdthree"


def test_line_ends_of_a_row_stay(evil: str) -> None:
    assert any(data.endswith("row text\nsecond\tline") for data in Page(evil).data)


def test_long_texts_fold_and_are_not_cut_inside_a_word(evil: str) -> None:
    page = Page(evil)
    (summary,) = (data for data in page.inside["summary"] if "characters in all" in data)
    assert "99,999 characters in all" in summary
    (first,) = (data for data in page.data if data.startswith(SHOWN) and "long text" in data)
    assert 500 < len(first) <= 701
    assert first.endswith((" text…", " long…"))
    assert sum(data.count("long text") + data.startswith(" text") for data in page.data) == 1900


def test_ids_are_unlike_and_links_lead_somewhere(evil: str) -> None:
    page = Page(evil)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    named = [target[1:] for target in page.all("href") if target.startswith("#")]
    named += [word for names in page.all("aria-labelledby") for word in names.split()]
    named += re.findall(r"url\(#([^)]+)\)", evil)
    assert len(named) > 40
    assert set(named) <= set(ids)


def test_headings_form_an_outline_and_parts_are_landmarks(evil: str) -> None:
    page = Page(evil)
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    names = [name for name, _ in page.tags]
    assert [names.count(name) for name in ("header", "nav", "main", "footer", "title", "h1")] == [1] * 6
    for name, attributes in page.tags:
        if name == "section":
            assert attributes.get("aria-labelledby")
        if name == "svg":
            assert attributes.get("role") == "img"
            assert len(attributes.get("aria-label") or "") > 30
        if name == "th":
            assert attributes.get("scope") in ("col", "row")
    assert dict(page.tags)["html"]["lang"] == "en"


def test_figures_follow_the_scheme_of_the_reader(evil: str) -> None:
    """Every colour of a figure is one of the page's, and the page has it in both schemes."""
    page = Page(evil)
    style = page.inside["style"][0]
    light, _, dark = style.partition("prefers-color-scheme: dark")
    used = set(re.findall(r"var\(--([\w-]+)\)", evil))
    assert {"ink", "corpus", "accent", "target"} <= used
    for scheme in (light, dark[: dark.index("\n}\n")]):
        assert used <= set(re.findall(r"--([\w-]+): #", scheme))
    drawn = [
        value for name, attributes in page.tags for value in [attributes.get("style") or ""] if name != "i"
    ]
    assert any("var(--" in value for value in drawn)
    assert not [value for value in drawn if re.search("#[0-9a-f]{3}", re.sub(r"url\(#[^)]*\)", "", value))]


def test_shares_of_a_row_and_the_rest_are_its_score() -> None:
    data = a_run(shown=1)
    (row,) = data.rows
    said = Page(render(data, [])).inside["span"]
    numbers = [float(value.replace("−", "-")) for value in said if re.fullmatch(r"[+−]\d\.\d{4}", value)]
    *_, first, second, rest = numbers
    assert [first, second] == [0.3, -0.1]
    assert f"{first + second + rest:.4f}" == f"{row.score:.4f}"


def test_hidden_rows_are_counted() -> None:
    assert "2 more selected rows" in render(a_run(shown=4, selected=6), [])
    assert "more selected rows" not in render(a_run(shown=6, selected=6), [])


def test_readable_on_a_phone(evil: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in evil
    assert "max-width: 36rem" in evil


def test_without_labels_the_page_says_what_is_not_known(tmp_path: Path) -> None:
    data = a_run()
    bare = replace(
        data,
        measured=Measured({"needs_labels": ["average precision", "recall@k"], "quality": {}}),
        scores=replace(data.scores, positive=None),
        rows=[replace(row, label=None, on_target=None) for row in data.rows],
    )
    figures = draw(bare, tmp_path)
    page = render(bare, figures)
    assert "Not measured: average precision, recall@k." in page
    assert "--label-column" in page
    assert 'name="label"' not in page
    assert [figure.name for figure in figures] == ["scores", "pca", "similarity"]


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    data = a_run()
    assert {figure.name for figure in draw(data, tmp_path)} == {path.stem for path in tmp_path.glob("*.png")}
    assert (tmp_path / "training.png").is_file()
    draw(replace(data, measured=Measured()), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pca.png", "scores.png", "similarity.png"]


def test_a_report_is_the_same_every_time(tmp_path: Path) -> None:
    pages = [render(data, draw(data, tmp_path)) for data in (a_run(), a_run())]
    assert pages[0] == pages[1]


def test_empty_report_says_so() -> None:
    data = a_run(shown=0, selected=0)
    page = render(replace(data, about=About("t"), measured=Measured(), latents={}), [])
    assert "No row was selected." in page
    assert ">Figures</h2>" not in page
    assert "No row is shown" in render(replace(a_run(shown=0), latents={}), [])
