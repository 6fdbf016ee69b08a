"""Imports point one way, in the order of CONTRIBUTING's map; nothing imports in a circle.

One import upwards is enough to make two rooms one: neither can be understood, tested or changed alone from
then on. So every import is read, those inside functions and those for type checkers only as well.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finescope"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Folders whose head is a map of their files.
MAPPED = (
    "ops",
    "sae",
    "curation",
    "curation/scoring",
    "storage",
    "search",
    "embeddings",
    "workflow/stages",
    "proof",
)


def rooms_of_the_map() -> list[str]:
    """The names below ``finescope/`` in CONTRIBUTING's map, as they stand there: lowest first."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"^    finescope/.*\n((?: {6}.*\n)+)", text, re.MULTILINE)
    entries = re.findall(r"^ {6}(\w+/?(?:, \w+/?)*)(?:  |$)", block, re.MULTILINE)
    return [name for entry in entries for name in entry.split(", ")]


@cache
def imports(module: str) -> list[tuple[str, int]]:
    """What of the package a module imports, anywhere in it, and in which line."""
    path, found = MODULES[module], []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [part if part in MODULES else str(node.module) for part in parts]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "finescope":
                assert name in MODULES or name.startswith("finescope._C"), f"{path}:{node.lineno}: {name}"
                if name in MODULES:
                    found.append((name, node.lineno))
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def test_the_map_names_every_file_and_folder() -> None:
    files = [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"]
    folders = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(rooms_of_the_map()) == sorted([*files, *folders])


def test_no_import_points_upwards() -> None:
    order = {name.removesuffix("/"): place for place, name in enumerate(rooms_of_the_map())}
    upwards = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {imported}"
        for module in MODULES
        if module != "finescope"  # the package's face, which knows where every public name lives
        for imported, line in imports(module)
        if imported != "finescope" and order[room(imported)] > order[room(module)]
    ]
    assert not upwards, "upwards by the map of CONTRIBUTING.md:\n" + "\n".join(upwards)


def test_nothing_imports_in_a_circle() -> None:
    edges = {
        module: {imported for imported, _ in imports(module) if imported not in ("finescope", module)}
        for module in MODULES
    }
    TopologicalSorter(edges).prepare()  # a CycleError names the modules


@pytest.mark.parametrize("folder", MAPPED)
def test_the_head_of_a_folder_names_its_files(folder: str) -> None:
    head = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or ""
    named = set(re.findall(r"\w+", head))
    there = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    there |= {path.parent.name for path in (PACKAGE / folder).glob("*/__init__.py")}
    assert there - named == set()


def test_oracles_share_no_code_with_what_they_judge() -> None:
    found = sorted((ROOT / "tests/support").glob("*oracle.py"))
    assert len(found) >= 4
    for path in found:
        names = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
        }
        assert "finescope" not in names, path
