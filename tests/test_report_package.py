"""The page's template, style and script are files: a package without them dies at the end of every run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    str(path.relative_to(ROOT)) for path in (ROOT / "finescope/report/templates").iterdir() if path.is_file()
}


def test_the_files_of_the_page_are_those_it_asks_for() -> None:
    assert {Path(name).name for name in FILES} == {
        "report.html.j2",
        "parts.html.j2",
        "style.css",
        "page.js",
    }


@pytest.mark.slow
def test_wheel_and_source_archive_hold_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m build` makes them: the wheel from the unpacked source archive."""
    monkeypatch.setenv("FINESCOPE_BUILD", "none")
    tree = tmp_path / "tree"
    left = shutil.ignore_patterns(".git", "build", "dist", "*.so", ".venv", "*.egg-info", "_build.json")
    shutil.copytree(ROOT, tree, ignore=left)
    with tarfile.open(tmp_path / made("build_sdist", tree, tmp_path)) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
        assert names >= FILES
        source.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = tmp_path / made("build_wheel", unpacked, tmp_path)
    assert set(zipfile.ZipFile(wheel).namelist()) >= FILES


def made(hook: str, tree: Path, folder: Path) -> str:
    """Call a hook of the build backend in a source tree; return the name of the file that it made."""
    call = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", call, hook, folder], cwd=tree, check=True, capture_output=True, text=True
    )
    return done.stdout.split()[-1]
