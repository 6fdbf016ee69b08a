"""Packaging: decide what is compiled, compile it, and tell setuptools about what exists.

Everything else about the package is in pyproject.toml. FINESCOPE_BUILD steers the native build:

* ``auto`` (default) builds what this machine can build; the install never fails for want of a tool, and one
  line says what was skipped and why. ``finescope info`` repeats it later.
* ``none`` builds nothing: a pure-Python wheel.
* ``cpu``, ``cuda`` must build the CPU object, or both, and fail loudly otherwise.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

import build_native  # noqa: E402  pip does not put the project's own folder on the path

BUILDING = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}


def _say(outcome: build_native.Outcome) -> None:
    reasons = dict.fromkeys(outcome.skipped.values())
    if outcome.mode == "auto" and not outcome.objects:
        print(
            f"finescope: native operations skipped, pure torch is used: {outcome.skipped['cpu']}",
            file=sys.stderr,
        )
    elif outcome.mode == "auto" and reasons:
        print(f"finescope: CUDA operations skipped: {next(iter(reasons))}", file=sys.stderr)


def _requirements(mode: str) -> list[str]:
    """torch, if only its headers are missing for a native build; read by get_requires_for_build_*."""
    return ["torch>=2.10"] if mode != "none" and build_native.only_torch_is_missing() else []


class BuildExt(build_ext):
    """Put the objects that ninja made where setuptools expects them."""

    def get_ext_filename(self, fullname: str) -> str:
        *package, name = fullname.split(".")
        return str(Path(*package, build_native.object_name(name)))

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(outcome.objects[ext.name.rpartition(".")[2]], target)


class BuildPy(build_py):
    """Install the record of the build, so that ``finescope info`` can say why something is missing."""

    def _folder(self) -> Path:
        return ROOT / "finescope" if self.editable_mode else Path(self.build_lib, "finescope")

    def run(self) -> None:
        super().run()
        outcome.write_record(self._folder())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(self._folder() / build_native.RECORD)]


try:
    mode = build_native.mode_from_environment()
    building = not BUILDING.isdisjoint(sys.argv[1:])
    # Compiled before setuptools starts: the tag of the wheel depends on whether it worked.
    outcome = build_native.build(mode if building else "none", ROOT)
except build_native.BuildError as error:
    sys.exit(f"finescope: {error}")
if building:
    _say(outcome)

setup(
    ext_modules=[Extension(f"finescope.{name}", []) for name in outcome.objects],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    setup_requires=_requirements(mode),
)
