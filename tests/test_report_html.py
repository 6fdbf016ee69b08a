"""The report shows text that strangers wrote: it may not run it, load anything, or be rearranged by it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from finescope.report.html import Figure, LatentShare, Report, SelectedRow, Table, render, text

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"&\u202egnp.exe\x00\ud800'
PNG = bytes.fromhex("89504e470d0a1a0a")


class Tags(HTMLParser):
    """Collects start tags with their attributes, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def row(rank: int = 1, body: str = EVIL) -> SelectedRow:
    return SelectedRow(
        rank,
        EVIL,
        body,
        0.5,
        EVIL,
        EVIL,
        0.75,
        [LatentShare(7, 0.25, EVIL), LatentShare(8, -0.05)],
        EVIL,
        False,
    )


@pytest.fixture
def page(tmp_path: Path) -> str:
    (tmp_path / "plot.png").write_bytes(PNG)
    report = Report(EVIL, EVIL, [(EVIL, EVIL)], [(EVIL, EVIL)], [EVIL], EVIL)
    report.methods = Table([EVIL, EVIL], [[EVIL, EVIL]], 0)
    report.methods_note = report.rows_note = report.settings = EVIL
    report.quality = Table(["a", "b"], [["c", "d"]])
    report.figures = [Figure(tmp_path / "plot.png", EVIL, EVIL)]
    report.rows = [row(), row(2, EVIL + "long text " * 4000)]
    report.total_selected = 5
    return render(report)


def test_no_foreign_markup_survives(page: str) -> None:
    parser = Tags()
    parser.feed(page)
    names = {name for name, _ in parser.tags}
    assert not names & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "svg",
        "audio",
        "video",
        "a",
    }
    assert all(not key.startswith("on") for _, attributes in parser.tags for key in attributes)
    assert all(
        (attributes.get("src") or "").startswith("data:image/png;base64,")
        for name, attributes in parser.tags
        if name == "img"
    )
    assert sum("<script>alert(1)</script>" in data for data in parser.data) >= 10  # shown as text, everywhere


def test_no_request_leaves_the_page(page: str) -> None:
    parser = Tags()
    parser.feed(page)
    loading = {"src", "href", "srcset", "action", "poster", "background", "ping", "formaction"}
    loaded = [value for _, tag in parser.tags for key, value in tag.items() if key in loading]
    assert loaded
    assert all((value or "").startswith("data:image/png;base64,") for value in loaded)
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"https?:|url\(|@import", style)
    assert "default-src 'none'" in page


def test_characters_that_reorder_or_break_the_page_are_replaced(page: str) -> None:
    assert not set(page) & {"\u202e", "\x00", "\ud800"}
    page.encode("utf-8")
    assert text("a\u200db क्‍ष") == "a\u200db क्‍ष"  # joiners carry meaning
    assert text("one\n\ttwo") == "one two"
    assert text("one\n\ttwo", True) == "one\n\ttwo"


def test_long_texts_fold_and_very_long_ones_are_cut(page: str) -> None:
    assert "<details><summary>" in page
    assert "characters in all" in page
    assert len(page) < 60_000


def test_hidden_rows_are_counted(page: str) -> None:
    assert "3 more selected rows" in page


def test_readable_on_a_phone(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "max-width:36rem" in page


def test_empty_report_says_so() -> None:
    page = render(Report("t", "s"))
    assert "No row was selected." in page
    assert "<h2>Figures</h2>" not in page
