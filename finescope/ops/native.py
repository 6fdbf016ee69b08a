"""Find and load the compiled operations; never raise, print or warn.

Importing a native object registers its kernels under the dispatch keys CPU or CUDA of
``torch.ops.finescope``, and from then on the dispatcher prefers them to the default bodies. Whatever prevents
that is kept as a reason for ``finescope info``; everything works without, only slower.

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

# Must equal FINESCOPE_OPERATIONS_VERSION in csrc/bindings/version.h, which says when to raise it.
OPERATIONS_VERSION = 5

_PACKAGE = Path(__file__).resolve().parent.parent
_STAMP = re.compile(rb"finescope-operations=(\d+);")
_OBJECTS = {"cpu": "_C", "cuda": "_C_cuda"}
_REINSTALL = (
    "reinstall finescope with FINESCOPE_BUILD={mode} (in a checkout: python build_native.py --mode {mode})"
)

_modules: dict[str, ModuleType] = {}
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


def _load_object(name: str) -> None:
    """Import one native object or record why not. Raises only what :func:`load` turns into a reason."""
    module = _OBJECTS[name]
    path = _PACKAGE / (module + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
    _remedies[name] = _REINSTALL.format(mode=name)
    if not path.exists():
        others = sorted(other.name for other in _PACKAGE.glob(f"{module}.*.so"))
        skipped = _build_record().get("skipped", {})
        if others:
            _reasons[name] = f"built for another Python: {', '.join(others)}"
        else:
            _reasons[name] = f"not built: {skipped.get(name, 'no compiled object is installed')}"
        return
    if name == "cuda" and torch.version.hip is not None:
        # Its tensors go by the same dispatch key.
        _reasons[name] = "this torch is built for ROCm, which takes no CUDA kernels"
        return
    version = _stamp(path)
    if version != OPERATIONS_VERSION:
        _reasons[name] = f"{path.name} is stale: operations version {version}, needed {OPERATIONS_VERSION}"
        return
    _modules[name] = importlib.import_module(f"finescope.{module}")


def load() -> None:
    """Load the native objects that are installed and fit. Quiet, idempotent, never raises."""
    if _modules or _reasons:
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
    """The loaded native object ``"cpu"`` or ``"cuda"``, or None."""
    return _modules.get(name)


def status() -> dict[str, dict[str, Any]]:
    """For ``cpu`` and ``cuda``: whether the native object is loaded, else the reason and the remedy.

    A loaded CPU object adds ``isas`` (compiled), ``usable`` (by this machine), ``active``, ``note`` (what was
    wrong with FINESCOPE_CPU_ISA, or ""), ``threads`` and ``versions``; a loaded CUDA object ``versions`` and
    ``architectures``, as nvcc names them.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in _OBJECTS:
        loaded = _modules.get(name)
        if loaded is None:
            reason = _reasons.get(name, "not loaded yet: import finescope.ops")
            found[name] = {"loaded": False, "reason": reason, "remedy": _remedies.get(name, "")}
            continue
        found[name] = {"loaded": True, "file": str(loaded.__file__), "versions": loaded.versions()}
        if name == "cpu":
            found[name].update(
                isas=loaded.compiled_isas(),
                usable=loaded.usable_isas(),
                active=loaded.active_isa(),
                note=loaded.isa_note(),
                threads=loaded.num_threads(),
            )
        else:
            found[name]["architectures"] = list(_build_record().get("cuda_architectures", ()))
    return found
