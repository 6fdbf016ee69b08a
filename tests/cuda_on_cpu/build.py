"""Compile the CUDA sources, kernels and bindings, as C++ for the CPU: ``python tests/cuda_on_cpu/build.py``.

The module registers its kernels under torch's CPU key, so that the suite runs them through the dispatcher
(see ``tests/test_cuda_on_cpu.py``).
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import build_native  # noqa: E402

sys.path.remove(str(ROOT))

NAME = "_C_cuda_on_cpu"
# longjmp between stacks is what the fibers do, and what fortified glibc takes for an attack. A device refuses
# misaligned access, so it traps here.
FLAGS = (
    "-O1",
    "-U_FORTIFY_SOURCE",
    "-fsanitize=alignment",
    "-fsanitize-undefined-trap-on-error",
    "-DFINESCOPE_CUDA_ON_CPU",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
)


def sources() -> list[Path]:
    """Every source of the CUDA object, and that of the module that the tests import."""
    cuda = (*(ROOT / "csrc/cuda").glob("*.cu"), *(ROOT / "csrc/bindings/cuda").glob("*.cpp"))
    return [*sorted(cuda), Path(__file__).with_name("module.cpp")]


def build(folder: Path) -> Path:
    """Compile what has changed into ``folder``; returns the module.

    Raises:
        build_native.BuildError: a tool is missing, or a source does not compile.
    """
    plan = build_native.make_plan("cpu", ROOT)
    (module,) = (target for target in plan.targets if target.libraries)
    python_flags = module.sources[0].flags
    folder.mkdir(parents=True, exist_ok=True)
    headers = [
        *(ROOT / "csrc").rglob("*.h"),
        *Path(__file__).parent.glob("*.h"),
        Path(__file__),
        ROOT / "build_native.py",
    ]
    newest = max(path.stat().st_mtime for path in headers)

    def compile_one(source: Path) -> Path:
        made = folder / f"{source.name}.o"
        if not made.exists() or made.stat().st_mtime < max(newest, source.stat().st_mtime):
            language = ("-x", "c++")
            fake = f"-I{Path(__file__).parent}"
            command = [
                *plan.compiler,
                fake,
                *plan.flags,
                *python_flags,
                *FLAGS,
                *language,
                "-c",
                str(source),
                "-o",
                str(made),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise build_native.BuildError(done.stderr)
            sys.stderr.write(done.stderr)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = [str(made) for made in pool.map(compile_one, sources())]
    linked = folder / build_native.object_name(NAME)
    link = [f"-L{plan.torch.lib}", "-ltorch_cpu", "-ltorch"]
    command = [*plan.compiler, "-shared", *objects, *link, "-o", str(linked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise build_native.BuildError(done.stderr)
    return linked


if __name__ == "__main__":
    print(build(ROOT / "build/cuda-on-cpu"))
