"""Find and load the compiled operations; never raise, print or warn.

Loading a native object registers its kernels under the dispatch keys CPU or CUDA of
``torch.ops.finescope``, and from then on the dispatcher prefers them to the default bodies. Whatever prevents
that is kept as a reason for ``finescope info``; everything works without, only slower.

The objects have no Python in them and serve every version. What the CPU's says of itself is asked through the
module ``finescope._C``, which is compiled for one; without it that object is not loaded either.

Environment: ``FINESCOPE_NATIVE=0`` hides the native objects; ``FINESCOPE_CPU_ISA=scalar|avx2|avx512|…``
forces an instruction set (an unusable one is reported by ``finescope info``, and the best usable one is
taken).
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import re
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# Must equal FINESCOPE_OPERATIONS_VERSION in csrc/version.h, which says when to raise it.
OPERATIONS_VERSION = 7

_PACKAGE = Path(__file__).resolve().parent.parent
_STAMP = re.compile(rb"finescope-operations=(\d+);")
_SAYS = re.compile(rb"finescope-(compiler|torch_headers|pybind11)=([^;\0]*);")
_OBJECTS = {"cpu": "libfinescope.so", "cuda": "libfinescope_cuda.so"}
_MODULE = "_C"
_REINSTALL = (
    "reinstall finescope with FINESCOPE_BUILD={mode} (in a checkout: python build_native.py --mode {mode})"
)

_loaded: dict[str, tuple[Path, ...]] = {}
_reasons: dict[str, str] = {}
_remedies: dict[str, str] = {}


def _build_record() -> dict[str, Any]:
    """What the build wrote beside the package: its mode, and why it skipped what it skipped."""
    try:
        record = json.loads((_PACKAGE / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _stamp(path: Path) -> int | None:
    """The operations version stored in a native object, read without loading it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = _STAMP.search(content)
        return int(found.group(1)) if found else None


def _says(path: Path) -> dict[str, str]:
    """What a native object was built with."""
    return {name.decode(): text.decode() for name, text in _SAYS.findall(path.read_bytes())}


def _files(name: str) -> tuple[Path, ...]:
    """The native object, and the module that it is asked through, if it is."""
    of_python = _MODULE + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
    names = (_OBJECTS[name], of_python) if name == "cpu" else (_OBJECTS[name],)
    return tuple(_PACKAGE / file for file in names)


def _load_object(name: str) -> None:
    """Load one native object or record why not. Raises only what :func:`load` turns into a reason."""
    files = _files(name)
    _remedies[name] = _REINSTALL.format(mode=name)
    missing = [path for path in files if not path.exists()]
    if missing:
        others = sorted(path.name for path in _PACKAGE.glob(f"{_MODULE}.*.so"))
        skipped = _build_record().get("skipped", {})
        if others and files[0].exists():
            _reasons[name] = f"built for another Python: {', '.join(others)}"
        else:
            _reasons[name] = f"not built: {skipped.get(name, 'no compiled object is installed')}"
        return
    if name == "cuda" and torch.version.hip is not None:
        # Its tensors go by the same dispatch key.
        _reasons[name] = "this torch is built for ROCm, which takes no CUDA kernels"
        return
    for path in files:
        version = _stamp(path)
        if version != OPERATIONS_VERSION:
            found = f"operations version {version}, needed {OPERATIONS_VERSION}"
            _reasons[name] = f"{path.name} is stale: {found}"
            return
    if name == "cpu":
        importlib.import_module(f"finescope.{_MODULE}")  # linked with the object: neither without the other
    else:
        torch.ops.load_library(files[0])  # type: ignore[no-untyped-call]
    _loaded[name] = files


def load() -> None:
    """Load the native objects that are installed and fit. Quiet, idempotent, never raises."""
    if _loaded or _reasons:
        return
    if os.environ.get("FINESCOPE_NATIVE", "").strip() == "0":
        for name in _OBJECTS:
            _reasons[name] = "hidden by FINESCOPE_NATIVE=0"
            _remedies[name] = "unset FINESCOPE_NATIVE"
        return
    for name in _OBJECTS:
        try:
            _load_object(name)
        except Exception as error:  # a broken object must cost speed, not the import
            _reasons[name] = f"cannot be loaded: {type(error).__name__}: {error}"


def module(name: str) -> ModuleType | None:
    """The module that the native object ``"cpu"`` is asked through; None unless the object is loaded."""
    return importlib.import_module(f"finescope.{_MODULE}") if name == "cpu" and name in _loaded else None


def status() -> dict[str, dict[str, Any]]:
    """For ``cpu`` and ``cuda``: whether the native object is loaded, else the reason and the remedy.

    A loaded object has ``file`` and ``versions`` (``operations``, ``torch_headers``, ``compiler``). The CPU's
    adds ``isas`` (compiled), ``usable`` (by this machine), ``active``, ``note`` (what was wrong with
    FINESCOPE_CPU_ISA, or "") and ``threads``; the CUDA one ``architectures``, as nvcc names them.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in _OBJECTS:
        if name not in _loaded:
            reason = _reasons.get(name, "not loaded yet: import finescope.ops")
            found[name] = {"loaded": False, "reason": reason, "remedy": _remedies.get(name, "")}
            continue
        versions: dict[str, Any] = {"operations": OPERATIONS_VERSION}
        for path in _loaded[name]:
            versions.update(_says(path))
        found[name] = {"loaded": True, "file": str(_loaded[name][0]), "versions": versions}
        asked = module(name)
        if asked is not None:
            found[name].update(
                isas=asked.compiled_isas(),
                usable=asked.usable_isas(),
                active=asked.active_isa(),
                note=asked.isa_note(),
                threads=asked.num_threads(),
            )
        else:
            found[name]["architectures"] = list(_build_record().get("cuda_architectures", ()))
    return found
