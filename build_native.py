"""Compile the native objects of FineScope with ninja: plan, write the rules, run them.

Imports the standard library only, so that ``setup.py`` and the tests can use it anywhere. Three steps:

1. :func:`make_plan` looks for what a build needs (with build_tools) and says in words what is missing.
2. :func:`ninja_text` turns a plan into a ``build.ninja`` (build_rules): one set of rules, flags per file.
3. :func:`run` executes it and returns the shared objects; those of the same contents as before are not
   compiled again (build_cache).

The grammar of ``csrc`` decides the flags. A file named ``<isa>.cpp`` or ``<anything>_<isa>.cpp`` anywhere
in ``csrc/cpu`` is the code of one instruction set and only it gets that set's flags; every other file is
compiled for the baseline of the platform, because a flag licenses the compiler to use the instructions
anywhere in the file.

From a checkout, ``python build_native.py`` builds in place.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, replace
from pathlib import Path

import build_cache
import build_tools
from build_rules import ninja_text, object_name
from build_tools import BuildError, Torch, TorchMissingError, compiles

__all__ = ["BuildError", "Outcome", "Plan", "TorchMissingError", "build", "make_plan", "ninja_text", "run"]

ROOT = Path(__file__).resolve().parent
RECORD = "_build.json"
MODES = ("auto", "none", "cpu", "cuda")
# The stable ABI of torch 2.10: one object serves every later torch; using a newer call is a compile error.
TORCH_TARGET_VERSION = "0x020a000000000000"
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# Seconds that all files of an object took one core of a Xeon, so that nobody takes a build for stuck.
TOOK = {"libfinescope": 100, "_C": 10, "libfinescope_cuda": 100}

# Contraction is off everywhere: a fused multiply-add rounds differently, and results must have the same bytes
# whichever instruction set computed them. Kernels that may use FMA safely ask for it by intrinsic.
COMMON_FLAGS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
)
BASELINE_FLAGS = {"x86": ("-march=x86-64", "-mtune=generic"), "arm": ("-march=armv8-a",), "other": ()}

_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt")
_AVX512 = (
    *_AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512cd",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
)
_VNNI = (*_AVX512, "-mavx512vnni")
# GCC hoists loads until it has no registers left for accumulators; cores that reorder need no schedule.
_NEON = ("-DFINESCOPE_NEON=1", "-fno-schedule-insns")
# Worst to best; each level contains the one before it, avx512 not avx_vnni. csrc/cpu/isa.cpp climbs the same
# ladder at run time.
ISA_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86": {
        "scalar": (),
        "avx2": _AVX2,
        # 256-bit registers: processors without AVX-512, and no part of it.
        "avx_vnni": (*_AVX2, "-mavxvnni"),
        "avx512": _AVX512,
        "avx512_vnni": _VNNI,
        "avx512_bf16": (*_VNNI, "-mavx512bf16"),
        "amx": (*_VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    },
    # The registers of NEON belong to the baseline; its levels say by a macro that they use its intrinsics.
    "arm": {"scalar": (), "neon": _NEON, "neon_dot": (*_NEON, "-march=armv8.2-a+dotprod")},
    "other": {"scalar": ()},
}
# What the assembler must know, which may be older than the compiler, where intrinsics are made of it.
_ASSEMBLED = {"amx": '__asm__("tdpbsud %tmm2, %tmm1, %tmm0");'}
ALL_ISAS = tuple(dict.fromkeys(name for isas in ISA_FLAGS.values() for name in isas))


@dataclass(frozen=True)
class Source:
    """One translation unit and the flags only it gets."""

    path: Path
    isa: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """One shared object: its name, its sources, the targets that it is linked with.

    One named lib… has no Python in it and is the same for every version; any other is a module of this
    Python. Whichever has a .cu file is linked by nvcc.
    """

    name: str
    sources: tuple[Source, ...]
    libraries: tuple[str, ...] = ()

    @property
    def cuda(self) -> bool:
        return any(source.path.suffix == ".cu" for source in self.sources)


@dataclass(frozen=True)
class Plan:
    """Everything that decides a build. ``skipped`` maps what is left out to the reason."""

    compiler: tuple[str, ...]
    ninja: tuple[str, ...]
    torch: Torch
    flags: tuple[str, ...]
    isas: tuple[str, ...]
    targets: tuple[Target, ...]
    skipped: dict[str, str]
    nvcc: str | None = None
    nvcc_flags: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()

    @property
    def architectures(self) -> tuple[str, ...]:
        """What the CUDA kernels are compiled to: sm_NN machine code, compute_NN code for newer GPUs."""
        return tuple(flag.rpartition("code=")[2] for flag in self.nvcc_flags if flag.startswith("-gencode="))


def mode_from_environment() -> str:
    """FINESCOPE_BUILD, checked."""
    mode = os.environ.get("FINESCOPE_BUILD", "auto").strip().lower() or "auto"
    if mode not in MODES:
        raise BuildError(f"FINESCOPE_BUILD={mode!r} is not one of {', '.join(MODES)}")
    return mode


def architecture() -> str:
    """The family of instruction sets of this machine: x86, arm or other."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return "x86"
    return "arm" if machine in ("aarch64", "arm64") else "other"


def file_isa(path: Path) -> str | None:
    """The instruction set that a file of csrc/cpu is written for, from its name; None for shared code."""
    stem = path.stem
    fitting = [isa for isa in ALL_ISAS if stem == isa or stem.endswith(f"_{isa}")]
    return max(fitting, key=len) if fitting else None


def cpu_kernels(root: Path = ROOT) -> list[Path]:
    """The sources of the CPU's kernels, those of every instruction set."""
    return sorted((root / "csrc/cpu").rglob("*.cpp"))


def _cpu_target(root: Path, arch: str, isas: tuple[str, ...]) -> Target:
    sources = [Source(path) for path in sorted((root / "csrc/bindings/cpu").glob("*.cpp"))]
    for path in cpu_kernels(root):
        isa = file_isa(path)
        if isa is None:
            sources.append(Source(path))
        elif isa in isas:
            sources.append(Source(path, isa, (*ISA_FLAGS[arch][isa], f"-DFINESCOPE_ISA={isa}")))
    if not sources:
        raise BuildError(f"no C++ sources under {root / 'csrc'}")
    return Target("libfinescope", tuple(sources))


def _module_target(root: Path, python_flags: tuple[str, ...]) -> Target:
    sources = sorted((root / "csrc/bindings/python").glob("*.cpp"))
    return Target("_C", tuple(Source(path, flags=python_flags) for path in sources), ("libfinescope",))


def cuda_architectures() -> tuple[str, ...]:
    """nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX" unless set)."""
    flags = []
    for entry in re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES):
        fitting = re.fullmatch(r"(\d+)\.(\d[a-z]?)(\+PTX)?", entry)
        if fitting is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: {entry!r} is not like 9.0, 9.0a or 9.0+PTX")
        number = fitting.group(1) + fitting.group(2)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if fitting.group(3):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return tuple(flags)


def _cuda_target(root: Path, torch: Torch) -> tuple[Target, str, tuple[str, ...]]:
    kernels, bindings = root / "csrc" / "cuda", root / "csrc" / "bindings" / "cuda"
    sources = tuple(Source(path) for path in sorted((*kernels.glob("*.cu"), *bindings.glob("*.cpp"))))
    target = Target("libfinescope_cuda", sources)
    if not target.cuda:
        raise BuildError("this version of FineScope has no CUDA kernels (csrc/cuda holds no .cu file)")
    nvcc = build_tools.find_nvcc()
    build_tools.check_nvcc_fits(nvcc, torch)
    flags = ("-std=c++17", "-O3", "-DNDEBUG", "-DUSE_CUDA", "--fmad=false", *cuda_architectures())
    host = ("-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall",)
    return target, nvcc, (*flags, *host)


def _toolchain() -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The compiler, the flags of shared files, and Python's headers, all tried out."""
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the native build supports Linux only, and this is {sys.platform}")
    compiler = build_tools.find_compiler()
    python_include = sysconfig.get_paths()["include"]
    baseline = (*COMMON_FLAGS, *BASELINE_FLAGS[architecture()])
    failure = compiles(
        compiler, baseline, "#include <optional>\nint main() { return std::optional<int>(0).value(); }\n"
    )
    if failure:
        raise BuildError(f"the C++ compiler {shlex.join(compiler)} cannot compile C++17: {failure}")
    failure = compiles(compiler, (*baseline, f"-I{python_include}"), "#include <Python.h>\n")
    if failure:
        raise BuildError(
            f"Python's headers are missing (for example: apt-get install python3-dev): {failure}"
        )
    return compiler, baseline, python_include


def only_torch_is_missing() -> bool:
    """Whether everything for a native build is here except torch: the one case that is worth fetching it."""
    try:
        _toolchain()
        build_tools.find_torch()
    except TorchMissingError:
        return True
    except BuildError:
        return False
    return False


def make_plan(mode: str, root: Path = ROOT) -> Plan:
    """What ``mode`` (auto, cpu or cuda) builds on this machine.

    Raises :class:`BuildError` when the CPU object cannot be built, or, with mode ``cuda``, the CUDA one. With
    ``auto``, a CUDA object that cannot be built is noted in ``skipped``.
    """
    compiler, baseline, python_include = _toolchain()
    arch = architecture()
    ninja = build_tools.find_ninja()
    torch = build_tools.find_torch()
    python_headers = dict.fromkeys((build_tools.find_pybind11(torch), Path(python_include)))
    isas = tuple(
        name
        for name, flags in ISA_FLAGS[arch].items()
        if not compiles(compiler, (*baseline, *flags), _ASSEMBLED.get(name, ""))
    )
    module = _module_target(root, tuple(f"-isystem{folder}" for folder in python_headers))
    targets = [_cpu_target(root, arch, isas), module]
    isas = tuple(name for name in isas if any(source.isa == name for source in targets[0].sources))
    # gcc 12 reports its own intrinsics, which begin with a deliberately undefined register.
    quiet = ("-Wno-maybe-uninitialized",)
    flags = (
        *baseline,
        *(quiet if not compiles(compiler, ("-Werror", *quiet), "") else ()),
        # Paths of the building machine do not belong in messages or in the binary.
        f"-ffile-prefix-map={root}{os.sep}=",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        *(f"-DFINESCOPE_HAVE_{name.upper()}=1" for name in isas),
        f"-I{root / 'csrc'}",
        f"-isystem{torch.include}",
    )
    skipped: dict[str, str] = {}
    nvcc: str | None = None
    nvcc_flags: tuple[str, ...] = ()
    if mode == "cpu":
        skipped["cuda"] = "FINESCOPE_BUILD=cpu"
    elif mode == "auto" and torch.cuda is None and torch.hip is None:
        # Nothing here could run it, and it takes half of a build.
        skipped["cuda"] = f"torch {torch.version} has no CUDA; FINESCOPE_BUILD=cuda compiles it all the same"
    else:
        try:
            target, nvcc, nvcc_flags = _cuda_target(root, torch)
            targets.append(target)
        except BuildError as error:
            if mode == "cuda":
                raise
            skipped["cuda"] = str(error)
    launcher = build_tools.find_ccache(compiler)
    return Plan(compiler, ninja, torch, flags, isas, tuple(targets), skipped, nvcc, nvcc_flags, launcher)


def object_key(plan: Plan, target: Target, root: Path = ROOT) -> str:
    """What decides one object of a plan, wherever the checkout and torch lie."""
    nvcc, flags = (plan.nvcc, plan.nvcc_flags) if target.cuda else (None, ())
    alone = replace(plan, targets=(target,), nvcc=nvcc, nvcc_flags=flags, launcher=())
    rules = [ninja_text(alone, root), build_tools.version_of(plan.compiler)]
    if nvcc is not None:
        rules.append(build_tools.version_of((nvcc,)))
    if not target.name.startswith("lib"):
        rules.append(sys.version)
    named = {plan.torch.root: f"torch {plan.torch.version}"}
    for flag in dict.fromkeys(flag for source in target.sources for flag in (*plan.flags, *source.flags)):
        place = Path(flag.removeprefix("-isystem"))
        if flag.startswith("-isystem") and plan.torch.root not in place.parents:
            named[place] = build_tools.headers_version(place)
    sources = [path for path in (root / "csrc").rglob("*") if path.is_file()]
    return build_cache.key("\n".join(rules), named, sources, root)


def run(plan: Plan, folder: Path, root: Path = ROOT) -> dict[str, Path]:
    """Build a plan in ``folder`` and return each target's shared object; nothing is compiled twice."""
    keys = {target.name: object_key(plan, target, root) for target in plan.targets}
    kept = {name: build_cache.find(key, object_name(name)) for name, key in keys.items()}
    found = {name: path for name, path in kept.items() if path is not None}
    for path in found.values():
        say(f"{path.name} of these sources was compiled before; taken from {path.parent}")
    missing = tuple(target for target in plan.targets if target.name not in found)
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        for name in {name for target in missing for name in target.libraries} & set(found):
            shutil.copy2(found[name], folder / found[name].name)  # to be linked with
        _compile(replace(plan, targets=missing), folder, root)
    for target in missing:
        found[target.name] = folder / object_name(target.name)
        build_cache.keep(keys[target.name], found[target.name])
    return {target.name: found[target.name] for target in plan.targets}


def _compile(plan: Plan, folder: Path, root: Path) -> None:
    rules = folder / "build.ninja"
    text = ninja_text(plan, root)
    if not rules.exists() or rules.read_text() != text:
        rules.write_text(text)
    workers = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)) + 1)
    files = sum(len(target.sources) for target in plan.targets)
    took = sum(TOOK[target.name] for target in plan.targets)
    what = f"what changed of {files} files, {workers} at a time"
    say(f"compiling {what}; elsewhere all of them took {took} s of one core")
    start = time.monotonic()
    environment = {"NINJA_STATUS": "[%f/%t, %e s] ", "CCACHE_BASEDIR": str(root), **os.environ}
    # A compiler that fails prints pages; they go to the log of the install, the error names the way on.
    done = subprocess.run([*plan.ninja, "-j", str(workers)], cwd=folder, env=environment, check=False)
    if done.returncode != 0:
        raise BuildError("the compiler failed (its messages are above; with pip, add -v to see them)")
    say(f"compiled in {time.monotonic() - start:.0f} s")


def say(text: str) -> None:
    """Tell whoever installs; pip shows it with -v."""
    print(f"finescope: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Outcome:
    """What a build made, and, for everything it did not, the reason."""

    mode: str
    objects: dict[str, Path]
    skipped: dict[str, str]
    torch: str | None = None
    compiler: str | None = None
    architectures: tuple[str, ...] = ()

    def write_record(self, package: Path) -> Path:
        """Write what ``finescope info`` repeats later into the folder of the package; returns the file."""
        record = {
            "mode": self.mode,
            "built": sorted(self.objects),
            "skipped": self.skipped,
            "torch": self.torch,
            "compiler": self.compiler,
            "cuda_architectures": list(self.architectures),
        }
        package.mkdir(parents=True, exist_ok=True)
        (package / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        return package / RECORD


def build(mode: str, root: Path = ROOT, folder: Path | None = None) -> Outcome:
    """Build what ``mode`` asks for. With ``auto`` a missing tool is a reason in the outcome, not an error."""
    if mode == "none":
        return Outcome(mode, {}, {"cpu": "FINESCOPE_BUILD=none", "cuda": "FINESCOPE_BUILD=none"})
    # Objects of different interpreters must not meet in one folder.
    folder = folder or root / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    try:
        plan = make_plan(mode, root)
        try:
            objects = run(plan, folder, root)
        except BuildError:
            if mode != "auto" or not any(target.cuda for target in plan.targets):
                raise
            # What nvcc can't do (most often: it refuses the C++ compiler) must not cost the CPU object.
            reason = "nvcc failed (its messages are above; with pip, add -v to see them)"
            targets = tuple(target for target in plan.targets if not target.cuda)
            plan = replace(plan, targets=targets, nvcc=None, nvcc_flags=(), skipped={"cuda": reason})
            objects = run(plan, folder, root)
        return Outcome(
            mode,
            objects,
            plan.skipped,
            plan.torch.version,
            shlex.join(plan.compiler),
            plan.architectures,
        )
    except BuildError as error:
        if mode != "auto":
            raise BuildError(f"FINESCOPE_BUILD={mode}: {error}") from None
        return Outcome(mode, {}, {"cpu": str(error), "cuda": f"needs the CPU object first: {error}"})


def main() -> int:
    """Build in place for a checkout."""
    parser = argparse.ArgumentParser(description="Build the native objects in place.")
    parser.add_argument("--mode", choices=MODES, help="instead of FINESCOPE_BUILD (default: auto)")
    given = parser.parse_args()
    try:
        outcome = build(given.mode or mode_from_environment())
    except BuildError as error:
        print(f"finescope: {error}", file=sys.stderr)
        return 1
    outcome.write_record(ROOT / "finescope")
    for name, reason in outcome.skipped.items():
        say(f"{name} skipped: {reason}")
    for path in outcome.objects.values():
        place = ROOT / "finescope" / path.name
        # Replace, never overwrite: another process may have the old object mapped.
        fresh = place.with_name(f".{place.name}.new")
        shutil.copy2(path, fresh)
        os.replace(fresh, place)
        print(f"finescope: built {place.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
