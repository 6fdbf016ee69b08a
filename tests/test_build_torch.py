"""Finding torch's headers without importing torch, and what an installation makes of what it finds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build_native
import build_tools
from support.building import CHECKOUT, ROOT, cpu_plan, forget_settings

pytestmark = CHECKOUT


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture(scope="module")
def plan() -> build_native.Plan:
    return cpu_plan()


def fake_torch(folder: Path, version: str, *, headers: bool = True) -> Path:
    torch = folder / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = '12.8'\n")
    if headers:
        (torch / "include/torch/csrc/stable").mkdir(parents=True)
        (torch / "include/torch/csrc/stable/library.h").touch()
    return folder


@pytest.fixture
def no_importable_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_tools.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_importable_torch")
class TestFindTorch:
    """The search for headers when torch cannot be imported, as under pip's build isolation."""

    def test_in_the_installing_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            build_tools,
            "_site_folders",
            lambda: iter([tmp_path / "none", fake_torch(tmp_path, "2.11.0+cu128")]),
        )
        found = build_tools.find_torch()
        assert (found.root, found.version, found.cuda) == (tmp_path / "torch", "2.11.0+cu128", "12.8")

    def test_built_for_rocm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = fake_torch(tmp_path, "2.11.0+rocm6.4") / "torch"
        (root / "version.py").write_text(
            "__version__ = '2.11.0+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n"
        )
        monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([tmp_path]))
        found = build_tools.find_torch()
        assert (found.cuda, found.hip) == (None, "6.4")

    def test_sysconfig_folders_are_searched(self) -> None:
        import sysconfig

        assert Path(sysconfig.get_paths()["platlib"]) in list(build_tools._site_folders())

    def test_active_environment_is_searched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        assert tmp_path / "lib" / python / "site-packages" in list(build_tools._site_folders())

    @pytest.mark.parametrize(
        ("version", "headers", "message"),
        [
            ("2.9.1", True, "torch 2.9.1 .* is older than 2.10"),
            ("2.13.0", False, "without its C\\+\\+ headers"),
        ],
    )
    def test_unfit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, headers: bool, message: str
    ) -> None:
        fake_torch(tmp_path, version, headers=headers)
        monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([tmp_path]))
        with pytest.raises(build_native.BuildError, match=message):
            build_tools.find_torch()

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([]))
        with pytest.raises(build_native.TorchMissingError, match="torch is not installed"):
            build_tools.find_torch()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "tag"),
    [
        ({"FINESCOPE_BUILD": "none"}, "py3-none-any"),
        ({"CXX": "false"}, "py3-none-any"),
        ({"FINESCOPE_BUILD": "cpu"}, "linux"),
    ],
    ids=["none", "no compiler", "cpu"],
)
def test_wheel_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], tag: str
) -> None:
    """A wheel is platform-specific exactly when a native object is in it."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT,
        tree,
        ignore=shutil.ignore_patterns(".git", "build", "*.so", ".venv", "*.egg-info", "_build.json"),
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
        tree,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert tag in wheel.name
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    natives = sorted(name.partition(".")[0] for name in names if name.endswith(".so"))
    assert natives == (["finescope/_C", "finescope/libfinescope"] if tag == "linux" else [])
    assert "finescope/_build.json" in names


def test_scripts_do_not_import_torch() -> None:
    """Asking for metadata must not need torch, nor wait for it."""
    assert "import torch" not in "".join(
        (ROOT / name).read_text() for name in ("setup.py", "build_native.py", "build_tools.py")
    )


@pytest.mark.usefixtures("no_importable_torch")
def test_torch_is_asked_for_only_where_it_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: build_native.Plan
) -> None:
    monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([]))
    assert build_native.only_torch_is_missing()
    monkeypatch.setenv("CXX", "false")
    assert not build_native.only_torch_is_missing()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([fake_torch(tmp_path, "2.10.0")]))
    assert not build_native.only_torch_is_missing()
