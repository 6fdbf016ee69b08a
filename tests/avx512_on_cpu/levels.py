"""The levels above AVX2 for processors without them: their own source, in AVX2, with ``intrinsics.h``.

``python tests/avx512_on_cpu/levels.py FOLDER`` compiles the CPU objects with such levels, beside a copy of
the package; a Python that starts in the folder of the copy finds them usable.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import build_native  # noqa: E402

sys.path.remove(str(ROOT))

# For every file; what the compiler says of vectors that no register holds is about other compilers' calls.
FLAGS = ("-DFINESCOPE_AVX512_ON_CPU", "-Wno-psabi")


def emulated(isa: str | None) -> bool:
    """Whether a level is one of those."""
    return isa is not None and (isa in ("avx_vnni", "amx") or isa.startswith("avx512"))


def isa_flags() -> dict[str, tuple[str, ...]]:
    """The instruction sets of x86 and their flags, those above AVX2 in its terms."""
    isas = build_native.ISA_FLAGS["x86"]
    in_avx2 = (*isas["avx2"], "-include", str(Path(__file__).with_name("intrinsics.h")))
    return {isa: in_avx2 if emulated(isa) else flags for isa, flags in isas.items()}


def build(folder: Path) -> Path:
    """Compile the CPU objects in ``folder``, whatever has changed, beside a copy of the package: returned.

    Raises:
        build_native.BuildError: a tool is missing, or a source does not compile.
    """
    real, build_native.ISA_FLAGS["x86"] = build_native.ISA_FLAGS["x86"], isa_flags()
    try:
        plan = build_native.make_plan("cpu", ROOT)
    finally:
        build_native.ISA_FLAGS["x86"] = real
    # The other files are not what is tested here.
    quick = tuple("-O2" if flag == "-O3" else flag for flag in plan.flags)
    plan = replace(plan, flags=(*quick, *FLAGS))
    made = build_native.run(plan, folder / "objects", ROOT)
    package = folder / "package" / "finescope"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "finescope", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in made.values():
        shutil.copy2(path, package / path.name)
    return package.parent


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/avx512-on-cpu"))
