"""What is handed on: the source archive builds by itself, the wheel has its data, the papers say the same.

A package without the page's templates dies at the end of every run; one without ``py.typed`` is untyped to
others.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import finescope

ROOT = Path(__file__).resolve().parent.parent
PAGE = {"page.js", "parts.html.j2", "proof.html.j2", "report.html.j2", "sets.html.j2", "style.css"}
DATA = {
    "finescope/py.typed",
    "finescope/html/templates/notebook.html.j2",
    *(f"finescope/report/templates/{name}" for name in PAGE),
}


def test_the_data_of_the_package_are_these() -> None:
    code = {".py", ".so", ".pyc", ".json"}
    files = [path for path in (ROOT / "finescope").rglob("*") if path.is_file() and path.suffix not in code]
    assert {str(path.relative_to(ROOT)) for path in files} == DATA


def made(hook: str, tree: Path, folder: Path) -> Path:
    """Call a hook of the build backend in a source tree; return the file that it made."""
    call = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
    command = [sys.executable, "-c", call, hook, folder]
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    return folder / done.stdout.split()[-1]


@pytest.mark.slow
def test_source_archive_and_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``python -m build`` makes them: the wheel from the unpacked archive, which holds every file."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a clone")
    monkeypatch.setenv("FINESCOPE_BUILD", "none")
    wanted = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    for name in wanted:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / "tree" / name)
    with tarfile.open(made("build_sdist", tmp_path / "tree", tmp_path)) as source:
        assert wanted - {name.partition("/")[2] for name in source.getnames()} == set()
        source.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    names = set(zipfile.ZipFile(made("build_wheel", unpacked, tmp_path)).namelist())
    assert names >= DATA
    version = f"finescope-{finescope.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"finescope", version}


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    return [line.strip() for line in found[1].splitlines()]


@pytest.mark.slow
def test_a_wheel_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs beside torch as it is unpacked, and brings nothing along but our own objects."""
    pytest.importorskip("auditwheel", reason="auditwheel isn't installed (make wheel)")
    monkeypatch.setenv("FINESCOPE_BUILD", "cpu")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    tree = shutil.copytree(
        ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info")
    )
    wheel = made("build_wheel", tree, tmp_path)
    _, options = recipe("wheel")[-1].split("auditwheel repair")
    options = options.replace("dist/*.whl", str(wheel)).replace("dist/manylinux", str(tmp_path / "others"))
    command = [sys.executable, "-m", "auditwheel", "repair", *shlex.split(options)]
    subprocess.run(command, check=True, capture_output=True)
    (repaired,) = (tmp_path / "others").iterdir()
    assert re.search(
        rf"cp{sys.version_info[0]}{sys.version_info[1]}-manylinux_2_\d+_\w+\.whl$", repaired.name
    )
    site = tmp_path / "site"
    with zipfile.ZipFile(repaired) as archive:
        archive.extractall(site)
    objects = {str(path.relative_to(site)).partition(".")[0] for path in site.rglob("*.so*")}
    assert objects == {"finescope/_C", "finescope/libfinescope"}
    script = "import finescope.ops as ops; print(ops.native.status()['cpu']['file'])"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=site, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(site / "finescope/libfinescope.so")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version() -> None:
    cited = read("CITATION.cff")
    assert cited["version"] == finescope.__version__
    assert f'\nlicense = "{cited["license"]}"\n' in (ROOT / "pyproject.toml").read_text()


# Need a GPU, pandas, Ray's metrics, a store's server or other libraries of autoencoders; those of memory, a
# quiet machine.
ELSEWHERE = {
    "cuda_sanitizer", "curate_memory", "gpu_benchmarks", "ray_data", "ray_metrics", "s3", "sae_convert",
    "saelens_run", "tap_hooknames",
}  # fmt: skip


def test_slow_tests_are_run_before_a_change_lands() -> None:
    script = (ROOT / ".ci/run").read_text()
    named = {path.name for name in re.findall(r"tests/test_[\w*]+\.py", script) for path in ROOT.glob(name)}
    slow = {
        path for path in (ROOT / "tests").glob("test_*.py") if re.search(r"mark\.slow\b", path.read_text())
    }
    assert {path.stem.removeprefix("test_") for path in slow if path.name not in named} == ELSEWHERE


def test_others_run_what_a_change_must_pass() -> None:
    """The hosted workflow runs the script that everybody can run; commits are checked as by ``make lint``."""
    jobs = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for job in jobs for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    wheels = read(".github/workflows/wheels.yml")["jobs"]["wheels"]
    assert [step["run"].split()[:2] for step in wheels["steps"] if "run" in step] == [["make", "wheel"]]
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    tools = [line.replace("$(BIN)", ".venv/bin") for line in recipe("lint")]
    for tool, hook in zip(tools, hooks, strict=True):
        assert tool.startswith(hook["entry"])
