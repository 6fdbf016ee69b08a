"""Every page in a real browser: what a person sees, reaches by keyboard, hears read out, and can do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from finescope.proof.page import PAGE, write_page
from finescope.report.data import Passage, RunData
from finescope.report.figures import draw
from finescope.report.page import render
from finescope.report.sets import SetLine, render_sets
from support.browser import CHROMIUM, Browser, browser
from support.results import PROOF, results
from support.runs import a_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"),
]
EVIL = '<script>window.ran = 1</script><img src="https://example.org/x.png" onerror="window.ran = 2">\u202e'
WIDTHS = (400, 1200)


def write(data: RunData, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(render(data, draw(data, folder / "plots")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty rows, the odd ones long, of strangers with bad intentions and endless words."""
    data = a_run(shown=30, selected=40, corpus=12_000, name=lambda what: f"{what} {EVIL}")
    rows = []
    for row in data.rows:
        text = f"row{row.rank}x {EVIL} {'word ' * 30 * row.rank}"
        rows.append(replace(row, passage=Passage(row.passage.id, text, 150 * row.rank)))
    rows[4] = replace(rows[4], passage=Passage("i" * 300, "w" * 900, 900), label="l" * 200)
    return write(replace(data, rows=rows), tmp_path_factory.mktemp("page"))


def sets_page(folder: Path) -> Path:
    """The page above three sets, one of which is short of rows."""
    lines = [
        SetLine(
            name,
            f"sets/{name}/report.html",
            {
                "targets": 20,
                "selected": 1234,
                "lowest_selected_score": -0.5,
                "labels": {"selected_precision": 0.75},
            },
            None if name == "law" else 123_456,
            {"law": 7, "n" * 40: 123} if name == "physics" else {},
            5000 if name == "law" else None,
        )
        for name in ("physics", "law", "n" * 40)
    ]
    path = folder / "sets.html"
    settings = {"corpus": ["w" * 300], EVIL: EVIL}
    path.write_text(render_sets(f"title {EVIL}", EVIL, lines, f"mixture {EVIL}", settings), encoding="utf-8")
    return path


def proof_page(folder: Path) -> Path:
    """The page of the proof that is in the repository, one of whose topics means ill."""
    numbers = json.loads(PROOF.read_text(encoding="utf-8"))
    numbers["plan"]["topics"][0] = EVIL
    write_page(folder, numbers)
    return folder / PAGE


def notebook_page(folder: Path) -> Path:
    """All results as a notebook shows them, in its colours."""
    path = folder / "notebook.html"
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=color-scheme content='light dark'>"
        "<title>Notebook</title><style>body { background: #fff; color: #222; font: 14px sans-serif }"
        " @media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } }"
        " :focus-visible { outline: 2px solid }</style>"
    )
    path.write_text(head + "".join(results(EVIL).values()), encoding="utf-8")
    return path


MADE = {"sets": sets_page, "proof": proof_page, "notebook": notebook_page}
PAGES = ["report", *MADE]


@pytest.fixture(scope="module")
def pages(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All kinds of page, by name."""
    return {"report": page, **{name: make(tmp_path_factory.mktemp(name)) for name, make in MADE.items()}}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


SETTLED = """
new Promise((done) => {
  const list = document.getElementById("list");
  const look = () => list.ariaBusy === "true" ? requestAnimationFrame(look) : done();
  requestAnimationFrame(look);
})
"""


def shown_ranks(chromium: Browser, *, settled: bool = True) -> list[int]:
    if settled:
        chromium.run(SETTLED)
    found = chromium.run(
        "Array.from(document.querySelectorAll('#list > li')).filter(row => row.offsetHeight > 0)"
        ".map(row => Number(row.dataset.rank))"
    )
    return list(found)


def put(chromium: Browser, field: str, value: str) -> None:
    chromium.run(
        f"(() => {{ const field = document.getElementById('tools').elements.{field}; field.value = {value!r};"
        "field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_asked_for_run_or_complained_about(
    chromium: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    page = pages[name]
    chromium.open(page, width=width, dark=dark)
    assert chromium.run("window.ran === undefined")
    asked = [
        event["params"]["request"]["url"]
        for event in chromium.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert all(url == page.as_uri() or url.startswith("data:image/png") for url in asked)
    complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in chromium.events if event["method"] in complaints] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_hangs_over_the_edge(
    chromium: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    chromium.open(pages[name], width=width)
    assert chromium.run("document.documentElement.scrollWidth") <= width
    beyond = chromium.run(
        "Array.from(document.querySelectorAll('svg text')).filter(text => {"
        " const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();"
        " return inner.left < outer.left || inner.right > outer.right || inner.top < outer.top"
        "  || inner.bottom > outer.bottom; }).map(text => text.textContent)"
    )
    assert beyond == []


CONTRAST = """
(() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const light = ({ r, g, b }) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.a === 1) return colour;
    }
    return { r: 255, g: 255, b: 255 };
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = new Map();
  let seen = 0;
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || node.closest("script") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node), drawn = node.closest("svg") !== null;
    const pair = [light(parse(drawn ? style.fill : style.color)), light(ground(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    seen += 1;
    if (ratio < 4.5) low.set(node.className.baseVal ?? node.className, [ratio, walk.currentNode.data.trim()]);
  }
  return { seen, low: Array.from(low) };
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_word_stands_out_from_its_ground(
    chromium: Browser, pages: dict[str, Path], name: str, dark: bool
) -> None:
    """The contrast that WCAG 2.1 AA asks for, 4.5, as the browser has computed the colours."""
    chromium.open(pages[name], "#latent-3" if name == "report" else "", dark=dark)
    found = chromium.run(CONTRAST)
    assert found["seen"] > (200 if name == "report" else 30)
    assert found["low"] == []
    dark_ground = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (dark_ground == "rgb(255, 255, 255)") is not dark


def test_a_screen_reader_finds_its_way(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    nodes = chromium.accessible()
    landmarks = ["banner", "navigation", "main", "search", "contentinfo"]
    assert [role for role, _ in nodes if role in landmarks] == landmarks
    headings = [name for role, name in nodes if role == "heading"]
    assert headings[0].startswith("title")
    assert [name for name in headings if name in PARTS] == PARTS
    images = [name for role, name in nodes if role in ("image", "img")]
    assert len(images) == 6
    assert all(len(name) > 30 for name in images)
    assert sum(role == "article" and name.startswith(tuple("123456789")) for role, name in nodes) == 30
    fields = [name for role, name in nodes if role in ("searchbox", "combobox")]
    assert fields == ["Find", "Label", "Order"]
    for role, name in nodes:
        if role in ("link", "region", "table", "DisclosureTriangle"):
            assert name, role


@pytest.mark.parametrize("name", PAGES)
def test_whatever_has_a_name_is_called_by_it(chromium: Browser, pages: dict[str, Path], name: str) -> None:
    chromium.open(pages[name])
    nodes = chromium.accessible()
    assert any(role == "table" for role, _ in nodes)
    for role, words in nodes:
        if role in ("link", "region", "table", "image", "img", "heading"):
            assert words, role
    if name != "notebook":
        landmarks = ["banner", "main", "contentinfo"]
        assert [role for role, _ in nodes if role in landmarks] == landmarks


@pytest.mark.parametrize("name", PAGES)
def test_what_can_be_scrolled_can_be_reached_and_is_named(
    chromium: Browser, pages: dict[str, Path], name: str
) -> None:
    """Nobody without a mouse or a finger could see the rest of it."""
    chromium.open(pages[name], width=400)
    found = chromium.run(
        "document.querySelectorAll('details').forEach(one => { one.open = true; }),"
        " Array.from(document.querySelectorAll('body *')).filter(box => box.scrollWidth > box.clientWidth"
        " && ['auto', 'scroll'].includes(getComputedStyle(box).overflowX))"
        ".map(box => [box.outerHTML.slice(0, 80), box.tabIndex, box.getAttribute('role'),"
        " box.getAttribute('aria-label')])"
    )
    assert found
    assert [box for box in found if box[1] != 0 or box[2] != "group" or not box[3]] == []


PARTS = ["What was asked", "How good is the selection?", "Figures", "Selected rows", "Settings"]


def test_the_keyboard_reaches_everything_and_shows_where_it_is(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    where = (
        "(() => { const on = document.activeElement, style = getComputedStyle(on);"
        " const box = on.getBoundingClientRect();"
        " return [on.getAttribute('href') || on.name || on.tagName, parseFloat(style.outlineWidth),"
        " style.outlineStyle, box.left >= 0 && box.bottom > 0 && box.top < innerHeight]; })()"
    )
    places = []
    for _ in range(40):
        chromium.press("Tab", 9)
        place, outline, style, visible = chromium.run(where)
        assert (outline >= 2 and style != "none") or place in ("find", "label", "order"), place
        assert visible, place
        places.append(place)
    assert places[0] == "#rows"
    order = ["#asked", "#quality", "#figures", "find", "label", "order"]
    assert [place for place in places if place in order] == order
    assert any(place.startswith("#latent-") for place in places[places.index("order") :])
    chromium.open(page)
    chromium.press("Tab", 9)
    chromium.press("Enter", 13)
    chromium.press("Tab", 9)
    assert str(chromium.run(where)[0]).startswith("#latent-")


def test_find_label_and_order(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    everything = list(range(1, 31))
    assert shown_ranks(chromium) == everything
    put(chromium, "find", "ROW7x")
    assert shown_ranks(chromium) == [7]
    assert chromium.run("document.querySelector('#tools output').value") == "1 of 30 rows"
    put(chromium, "find", "script row1")
    assert shown_ranks(chromium) == [1, *range(10, 20)]
    put(chromium, "find", "")
    labels = chromium.run("Array.from(document.getElementById('tools').elements.label.options, o => o.value)")
    put(chromium, "label", next(label for label in labels if label.startswith("=other")))
    assert shown_ranks(chromium) == [rank for rank in everything if rank % 2 and rank != 5]
    put(chromium, "label", "")
    put(chromium, "order", "rank -1")
    assert shown_ranks(chromium) == everything[::-1]
    put(chromium, "order", "length -1")
    by_length = sorted(everything, key=lambda rank: (-(900 if rank == 5 else 150 * rank), rank))
    assert shown_ranks(chromium) == by_length
    put(chromium, "order", "rank 1")
    assert shown_ranks(chromium) == everything


def test_a_latent_shows_its_rows_and_back_goes_back(chromium: Browser, page: Path) -> None:
    chromium.open(page)
    click = "document.querySelector('#row-3 a[href=\"#latent-4\"]').click()"
    chromium.run(f"{click}, new Promise(done => setTimeout(done, 100))")
    assert shown_ranks(chromium) == [3, 4]
    card = "document.getElementById('latent-4').offsetHeight > 0"
    assert chromium.run(card)
    assert "rows 3, 4" in " ".join(chromium.run("document.getElementById('latent-4').innerText").split())
    chromium.run("history.back(), new Promise(done => setTimeout(done, 300))")
    assert shown_ranks(chromium) == list(range(1, 31))
    assert not chromium.run(card)


def test_without_scripts_the_page_says_the_same(chromium: Browser, page: Path) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(page, "#latent-4")
        assert shown_ranks(chromium, settled=False) == list(range(1, 31))
        assert chromium.run("document.getElementById('latent-4').offsetHeight > 0")
        assert chromium.run("document.getElementById('tools').offsetHeight === 0")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)


STALL = """
(async () => {
  const { find, order } = document.getElementById("tools").elements;
  const list = document.getElementById("list");
  let worst = 0, last = performance.now(), moved = 0, most = 0;
  const watch = new MutationObserver((changes) => {
    for (const { type, addedNodes, target } of changes) {
      moved += type === "childList" ? addedNodes.length : !target.hidden;
    }
  });
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(() => {
    worst = Math.max(worst, performance.now() - last);
    most = Math.max(most, moved);
    last = performance.now();
    moved = 0;
    done();
  })));
  for (let at = 0; at < 5; at += 1) await frame();
  watch.observe(list, { childList: true, subtree: true, attributeFilter: ["hidden"] });
  worst = most = 0;
  STEP;
  do { await frame(); } while (list.ariaBusy === "true");
  await frame();
  watch.disconnect();
  return [most, worst / 1000];
})()
"""


def test_a_thousand_rows_do_not_stall(chromium: Browser, tmp_path: Path) -> None:
    """Whatever is asked for, the browser has only some of the rows to lay out before its next frame."""
    text = "Some words of a middling row, as many as a paragraph has. " * 12
    data = a_run(shown=1000, selected=1000, corpus=1200, text=text)
    page = write(data, tmp_path)
    assert page.stat().st_size < 4 << 20
    chromium.call("Accessibility.disable")  # its tree of 50,000 nodes costs more than the page
    chromium.open(page)
    assert shown_ranks(chromium) == list(range(1, 1001))
    everything = chromium.run(
        "(() => { const list = document.getElementById('list'), start = performance.now();"
        " list.replaceChildren(...Array.from(list.children)); document.body.offsetHeight;"
        " return (performance.now() - start) / 1000; })()"
    )
    put = "{0}.value = '{1}'; {0}.dispatchEvent(new Event('input', {{ bubbles: true }}))".format
    steps = {
        "find": put("find", "paragraph"),
        "find nothing": put("find", "absent"),
        "find all": put("find", ""),
        "order": put("order", "rank -1"),
        "latent": "location.hash = '#latent-3'",
        "all rows": "location.hash = '#row-900'",
    }
    frames = {name: chromium.run(STALL.replace("STEP", step)) for name, step in steps.items()}
    print(f"all rows at once {everything:.3f} s; most rows and longest time of a frame: {frames}")
    assert all(0 < frames[name][0] <= 200 for name in ("find all", "order", "all rows"))
    assert max(seconds for _, seconds in frames.values()) < max(0.5, everything)
    assert shown_ranks(chromium) == list(range(1000, 0, -1))
    chromium.call("Accessibility.enable")


def test_a_link_to_a_row_leads_there_when_others_come_back(chromium: Browser, page: Path) -> None:
    chromium.open(page, "#latent-30")
    assert shown_ranks(chromium) == [29, 30]
    chromium.run("document.querySelector('#latent-30 a[href=\"#row-30\"]').click()")
    assert shown_ranks(chromium) == list(range(1, 31))
    top = chromium.run("document.getElementById('row-30').getBoundingClientRect().top")
    assert 0 <= top < 900


@pytest.mark.parametrize("name", ["report", "sets", "proof"])
def test_on_a_desk_no_table_hides_a_column(chromium: Browser, pages: dict[str, Path], name: str) -> None:
    chromium.open(pages[name], width=1200)
    hidden = chromium.run(
        "Array.from(document.querySelectorAll('.scroll')).filter(box => box.querySelector('table'))"
        ".map(box => box.scrollWidth - box.clientWidth)"
    )
    assert hidden
    assert max(hidden) <= 0


CAPTIONS = {
    "report": {"Quality of the selection", "Methods on this target domain"},
    "sets": {"What was selected for each set"},
    "proof": {"ridge+tfidf+2*dense-whitened against each rival", "After 3,072 tokens of chosen rows"},
}


@pytest.mark.parametrize("width", [360, 390, *WIDTHS])
@pytest.mark.parametrize("name", CAPTIONS)
def test_what_a_table_says_first_is_on_the_screen(
    chromium: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    chromium.open(pages[name], width=width)
    ends = chromium.run(
        "Array.from(document.querySelectorAll('tbody tr')).map(row => ["
        "row.closest('table').caption.innerText, row.cells[0].innerText,"
        "row.cells[1].getBoundingClientRect().right])"
    )
    assert CAPTIONS[name] <= {end[0] for end in ends}
    assert [end for end in ends if end[2] > width] == []
    scrolled = chromium.run(
        "Array.from(document.querySelectorAll('.scroll')).filter(box => box.querySelector('table'))"
        ".map(box => { box.scrollLeft = 1000; const names = box.querySelector('tbody th');"
        "return [box.getBoundingClientRect().left, names.getBoundingClientRect().left]; })"
    )
    if width < 576:
        assert all(abs(left - name) < 1 for left, name in scrolled)
