"""``--all``: the whole grid; without it, what takes minutes is left out. ``--rows``: fewer texts."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import harness


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the benchmarks marked big")
    parser.addoption("--rows", type=int, help="texts of the benchmarks that read text")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rows" in metafunc.fixturenames:
        rows = metafunc.config.getoption("--rows") or metafunc.module.ROWS
        metafunc.parametrize("rows", [rows], ids=lambda rows: f"N{rows}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    big = [item for item in items if item.get_closest_marker("big")]
    if big:
        config.hook.pytest_deselected(items=big)
        items[:] = [item for item in items if not item.get_closest_marker("big")]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A commit under comparison may be older than what a benchmark measures: it has no figure there."""
    if not harness.ALONE or not collection_path.match("bench_*.py"):
        return None
    try:
        importlib.import_module(f"benchmarks.{collection_path.stem}")
    except ImportError as error:
        print(f"left out: {collection_path.name}: {error}")
        return True
    return None
