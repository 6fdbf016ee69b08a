"""Parts of pages that the package itself says: help texts, and tables of what there is to choose.

Each stands between ``<!-- begin NAME -->`` and ``<!-- end -->``. Tables are there in the files too, so that
pages can be read where the repository is: ``python docs/hooks.py`` writes them. Long parts are put in when
pages are built.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_PART = re.compile(r"^<!-- begin (\w+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
_ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with all its parts as the package has them now."""
    return _PART.sub(lambda found: (_TABLES | _LONG)[found[1]](), markdown)


def with_tables(markdown: str) -> str:
    """Return a page with its tables as the package has them now, as it is kept in the repository."""
    return _PART.sub(
        lambda found: (
            f"<!-- begin {found[1]} -->\n{_TABLES[found[1]]()}\n<!-- end -->"
            if found[1] in _TABLES
            else found[0]
        ),
        markdown,
    )


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add pictures and tables that lie elsewhere in the repository."""
    from mkdocs.structure.files import File

    for name in ("demo.png",):
        files.append(
            File.generated(config, f"pictures/{name}", abs_src_path=str(_ROOT / "benchmarks/results" / name))
        )
    return files


def help_of_all() -> str:
    """Return the help texts of all commands of ``finescope``, one after the other."""
    import click

    from finescope.cli import main

    context = click.Context(main, info_name="finescope")
    parts = []
    for name in main.list_commands(context):
        found = main.get_command(context, name)
        assert found is not None, name
        text = found.get_help(click.Context(found, parent=context, info_name=name, max_content_width=100))
        parts.append(f"## finescope {name}\n\n```text\n{text}\n```\n")
        if isinstance(found, click.Group):
            inner = click.Context(found, parent=context, info_name=name)
            for sub in found.list_commands(inner):
                child = found.get_command(inner, sub)
                assert child is not None, sub
                text = child.get_help(
                    click.Context(child, parent=inner, info_name=sub, max_content_width=100)
                )
                parts.append(f"### finescope {name} {sub}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def scorers() -> str:
    """Return the table of scorers."""
    from finescope.curation.scoring.scorers import TABLE

    return _table(
        ("`--scorer`", "what it is"), ((f"`{name}`", scorer.summary) for name, scorer in TABLE.items())
    )


def presets() -> str:
    """Return the table of presets."""
    from finescope.curation.scoring.presets import PRESETS

    return _table(
        ("`--preset`", "pooling", "weights", "scorer", "what it is"),
        (
            (f"`{name}`", preset.pooling, preset.weights, preset.scorer, preset.summary)
            for name, preset in PRESETS.items()
        ),
    )


def formats() -> str:
    """Return the table of the formats of autoencoders, by the heads of their files."""
    import importlib
    import pkgutil

    import finescope.sae.formats as folder

    rows = []
    for found in pkgutil.iter_modules(folder.__path__):
        module = importlib.import_module(f"{folder.__name__}.{found.name}")
        values = itertools.chain.from_iterable(
            value if isinstance(value, tuple) else (value,) for value in vars(module).values()
        )
        here = [value for value in values if type(value).__name__ == "Format"]
        names = dict.fromkeys(value.name for value in here)
        if names and module.__name__ != f"{folder.__name__}.known":
            written = "yes" if any(value.write is not None for value in here) else ""
            rows.append((", ".join(f"`{name}`" for name in names), _sentence(module), written))
    return _table(("format", "what it is", "written"), rows)


def _sentence(module: Any) -> str:
    """Return the first sentence of the first paragraph of a module's docstring."""
    paragraph = " ".join(str(module.__doc__).partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(":.")


def speed() -> str:
    """Return the tables of all measurements, a level lower."""
    text = (_ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    return text.partition("\n")[2]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


_TABLES: dict[str, Callable[[], str]] = {"scorers": scorers, "presets": presets, "formats": formats}
_LONG: dict[str, Callable[[], str]] = {"help": help_of_all, "speed": speed}

if __name__ == "__main__":
    for page in sorted((_ROOT / "docs" / "pages").rglob("*.md")):
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
