"""Find what a native build needs, and say in words what is missing. Standard library only."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MINIMUM_TORCH = (2, 10)


class BuildError(Exception):
    """The native objects cannot be built; the message says what is missing and what to do."""


class TorchMissingError(BuildError):
    """No torch was found. A build front end may install one and try again."""


@dataclass(frozen=True)
class Torch:
    """A torch installation to compile and link against."""

    root: Path
    version: str
    cuda: str | None
    hip: str | None = None

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


def _site_folders() -> Iterator[Path]:
    """Where torch may lie, nearest first.

    Under pip's build isolation ``sys.path`` is emptied of the installing environment, but sysconfig still
    names its folders. uv and ``python -m build`` use an environment of their own; VIRTUAL_ENV and
    CONDA_PREFIX then name the one that is active. Headers of any torch from 2.10 on serve, so a near miss
    does no harm.
    """
    schemes: list[dict[str, str | int | None]] = [{}]
    if sys.prefix != sys.base_prefix:
        settings = Path(sys.prefix, "pyvenv.cfg")
        text = settings.read_text() if settings.exists() else ""
        if re.search(r"(?im)^include-system-site-packages\s*=\s*true", text):
            schemes.append({"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    for variables in schemes:
        paths = sysconfig.get_paths(vars=variables)
        yield Path(paths["platlib"])
        yield Path(paths["purelib"])
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(name):
            yield Path(os.environ[name], "lib", python, "site-packages")
    if site.ENABLE_USER_SITE:
        yield Path(site.getusersitepackages())


def find_torch() -> Torch:
    """The torch to build against: the importable one, else the installing environment's (never imported)."""
    roots = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        roots.append(Path(spec.origin).parent)
    roots += [folder / "torch" for folder in _site_folders()]
    problems = []
    for root in dict.fromkeys(roots):
        try:
            text = (root / "version.py").read_text()
        except OSError:
            continue
        version = re.search(r"__version__\s*(?::[^=]+)?=\s*['\"]([^'\"]+)", text)
        cuda, hip = (
            re.search(rf"^{name}\s*(?::[^=]+)?=\s*['\"]([^'\"]+)", text, re.MULTILINE)
            for name in ("cuda", "hip")
        )
        number = re.match(r"(\d+)\.(\d+)", version.group(1)) if version else None
        if version is None or number is None:
            problems.append(f"{root}/version.py names no version")
        elif tuple(map(int, number.groups())) < MINIMUM_TORCH:
            problems.append(f"torch {version.group(1)} in {root.parent} is older than 2.10")
        elif not (root / "include/torch/csrc/stable/library.h").exists():
            problems.append(f"torch {version.group(1)} in {root.parent} comes without its C++ headers")
        else:
            named = (found.group(1) if found else None for found in (cuda, hip))
            return Torch(root, version.group(1), *named)
    if problems:
        raise BuildError(f"{'; '.join(problems)}: install torch 2.10 or later, then finescope again")
    raise TorchMissingError("torch is not installed: install torch 2.10 or later, then finescope again")


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler: $CXX, else the first of c++, g++, clang++."""
    if os.environ.get("CXX"):
        command = tuple(shlex.split(os.environ["CXX"]))
        if shutil.which(command[0]) is None:
            raise BuildError(f"no C++ compiler: CXX names {command[0]}, which is not there")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return (name,)
    raise BuildError("no C++ compiler found: install one (for example: apt-get install g++), or set CXX")


def find_ccache(compiler: tuple[str, ...]) -> tuple[str, ...]:
    """What goes in front of every compilation: the program of that name, where there is one."""
    found = shutil.which("ccache")
    return (found,) if found and "ccache" not in Path(compiler[0]).name else ()


def version_of(compiler: tuple[str, ...]) -> str:
    """What a compiler says of itself."""
    try:
        done = subprocess.run(
            [*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        return str(error)
    return done.stdout


def headers_version(folder: Path) -> str:
    """What tells the headers in a folder from others: those that say a version themselves, or the folder."""
    for name in ("pybind11/detail/common.h", "patchlevel.h"):
        if (folder / name).is_file():
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return str(folder)


def find_ninja() -> tuple[str, ...]:
    """The ninja program, from PATH or from the package of that name."""
    found = shutil.which("ninja") or shutil.which("ninja-build")
    if found:
        return (found,)
    if importlib.util.find_spec("ninja") is not None:
        return (sys.executable, "-m", "ninja")
    raise BuildError("ninja not found: pip install ninja")


def find_pybind11(torch: Torch) -> Path:
    """pybind11's headers: of the package of that name, else the copy that torch carries."""
    spec = importlib.util.find_spec("pybind11")
    folders = [Path(spec.origin).parent / "include"] if spec is not None and spec.origin else []
    for folder in (*folders, torch.include):
        if (folder / "pybind11/pybind11.h").exists():
            return folder
    raise BuildError("pybind11 not found: pip install pybind11")


def find_nvcc() -> str:
    """The CUDA compiler: $CUDACXX, $CUDA_HOME, PATH, /usr/local/cuda."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [
        os.environ.get("CUDACXX"),
        *(f"{home}/bin/nvcc" for home in homes),
        "nvcc",
        "/usr/local/cuda/bin/nvcc",
    ]
    for candidate in candidates:
        found = shutil.which(candidate) if candidate else None
        if found:
            return os.path.realpath(found)
    raise BuildError("nvcc not found: install the CUDA toolkit, or set CUDA_HOME")


def nvcc_version(nvcc: str) -> tuple[int, int]:
    """The CUDA version that a compiler belongs to."""
    try:
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise BuildError(f"{nvcc} cannot be run: {error}") from None
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if found is None:
        raise BuildError(f"{nvcc} --version names no CUDA release")
    return int(found.group(1)), int(found.group(2))


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that this machine's driver runs; None where there is no driver."""
    number = ctypes.c_int(0)
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return number.value // 1000, number.value % 1000 // 10


def check_nvcc_fits(nvcc: str, torch: Torch) -> None:
    """Refuse a pair of nvcc and torch whose object could not run.

    The object carries its own CUDA runtime and meets torch only in the driver. So what counts is whether a
    driver that serves torch serves the object too: always if nvcc is of torch's major version or an older
    one, and never for certain if it is of a newer one. A torch without CUDA asks for nothing.
    """
    if torch.hip is not None:
        raise BuildError(f"torch {torch.version} is built for ROCm, which takes no CUDA kernels")
    compiler = nvcc_version(nvcc)
    served = int(torch.cuda.split(".")[0]) if torch.cuda else compiler[0]
    if compiler[0] <= served:
        return
    driver = driver_version()
    if driver is not None and driver[0] >= compiler[0]:
        return
    has = f"one for CUDA {driver[0]}.{driver[1]}" if driver else "none"
    raise BuildError(
        f"nvcc is of CUDA {compiler[0]}.{compiler[1]} ({nvcc}) but torch {torch.version} of CUDA {torch.cuda}"
        f": code of nvcc {compiler[0]} needs a driver for CUDA {compiler[0]}, and this machine has {has};"
        f" set CUDA_HOME to a toolkit of CUDA {served}, or install a torch built for CUDA {compiler[0]}"
    )


def compiles(compiler: tuple[str, ...], flags: tuple[str, ...], text: str) -> str | None:
    """None if ``text`` compiles to an object with these flags, else the compiler's first words."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(text)
        command = [*compiler, *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            return str(error)
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit status {done.returncode}"])[0].replace(f"{source}", "probe.cpp")
