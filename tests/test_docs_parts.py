"""Tables that the package itself says are there, and current, where the pages are read as plain files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not PAGES, reason="the pages aren't there")
def test_every_part_is_current_or_says_where_it_is(hooks: ModuleType) -> None:
    parts = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert hooks.with_tables(text) == text, f"{page.name} is out of date: {sys.executable} docs/hooks.py"
        built = hooks.on_page_markdown(text)
        assert "<!-- begin" not in built, page.name
        parts.update({name: words.strip() for name, words in hooks._PART.findall(text)})
    assert parts.keys() == {"help", "scorers", "presets", "formats", "speed"}
    for name, words in parts.items():
        assert words.startswith("|") or "make docs" in words, name


def test_a_part_is_replaced_whole(hooks: ModuleType) -> None:
    table, long = "<!-- begin presets -->\n{}\n<!-- end -->", "<!-- begin help -->\nsee there\n<!-- end -->"
    kept = hooks.with_tables(f"a\n\n{table.format('old')}\n\n{long}\n")
    assert kept == f"a\n\n{table.format(hooks.presets())}\n\n{long}\n"
    built = hooks.on_page_markdown(kept)
    assert built.startswith(f"a\n\n{hooks.presets()}\n\n## finescope ")
    assert "see there" not in built
