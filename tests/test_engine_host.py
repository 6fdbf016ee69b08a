"""The kernels outside of torch: their results, the bounds of every screen, and every access to memory.

A bound that is a little too small almost never shows in results, and neither does a read past the end of a
row. So the kernels are compiled into programs of their own, with AddressSanitizer and UBSan, which compare
every screened score and every result with plain arithmetic and read from arrays that end where they should.
The same programs are compiled for aarch64 and run in an emulator, and the levels above AVX2 from their own
source for processors without them: whatever the machine, the results have the same bytes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import build_native
from avx512_on_cpu import levels

ROOT = Path(__file__).resolve().parent.parent
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")
PROGRAMS = {"engine": ("engine_host",), "kernels": ("kernels_host", "training_host")}
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# An emulated minute is long: the data with the widest range, and the data that sits on the bound.
EMULATED = {"engine": ("outliers", "corners"), "kernels": ()}


def compile_programs(
    compiler: tuple[str, ...],
    arch: str,
    flags: tuple[str, ...],
    folder: Path,
    *,
    without_avx512: Path | None = None,
) -> None:
    """Compile every program for all instruction sets of ``arch`` into ``folder``.

    With ``without_avx512`` the levels above AVX2 are those for processors without them, and everything else
    is taken as it was compiled in that folder.
    """
    isa_flags = build_native.ISA_FLAGS[arch] if without_avx512 is None else levels.isa_flags()
    baseline = build_native.BASELINE_FLAGS[arch]
    isas = {
        isa: own
        for isa, own in isa_flags.items()
        if not build_native.compiles(compiler, (*baseline, *own), "")
    }
    shared = (
        *(flag for flag in build_native.COMMON_FLAGS if flag not in ("-O3", "-DNDEBUG")),
        *baseline,
        *(f"-DFINESCOPE_HAVE_{isa.upper()}=1" for isa in isas),
        f"-I{ROOT / 'csrc'}",
        "-Wno-maybe-uninitialized",
        *flags,
    )
    kernels: dict[Path, tuple[str, ...]] = {}
    for path in build_native.cpu_kernels():
        isa = build_native.file_isa(path)
        if isa is None or isa in isas:
            kernels[path] = () if isa is None else (*isas[isa], f"-DFINESCOPE_ISA={isa}")
    mains = [Path(__file__).with_name(f"{stem}.cpp") for stems in PROGRAMS.values() for stem in stems]

    def compiled(path: Path) -> str:
        name = "-".join(path.relative_to(ROOT).with_suffix(".o").parts)
        own = path.stem == "isa" or levels.emulated(build_native.file_isa(path))
        if without_avx512 is not None and not own:
            return str(without_avx512 / name)
        made = str(folder / name)
        command = [*compiler, *shared, *kernels.get(path, ()), "-c", str(path), "-o", made]
        subprocess.run(command, check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = dict(zip([*kernels, *mains], pool.map(compiled, [*kernels, *mains]), strict=True))
    for name, stems in PROGRAMS.items():
        used = [made for path, made in objects.items() if path in kernels or path.stem in stems]
        subprocess.run([*compiler, *used, *flags, "-pthread", "-o", str(folder / name)], check=True)


def run(command: list[str]) -> dict[str, str]:
    """Run a program; the checksum of its results by instruction set."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return dict(re.findall(r"^(\w+): 0 failures, results (\w+)$", done.stdout, re.MULTILINE))


def host_compiler() -> tuple[str, ...]:
    if build_native.architecture() == "other":
        pytest.skip("no instruction sets are known for this machine")
    try:
        return build_native.build_tools.find_compiler()
    except build_native.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plain_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    compile_programs(host_compiler(), build_native.architecture(), ("-O2",), folder)
    return folder


@pytest.mark.slow
def test_kernels(plain_programs: Path) -> None:
    for name in PROGRAMS:
        results = run([str(plain_programs / name)])
        assert "scalar" in results
        assert len(set(results.values())) == 1, results


@pytest.mark.slow
def test_kernels_sanitized(tmp_path: Path) -> None:
    compile_programs(host_compiler(), build_native.architecture(), ("-O1", *SANITIZE), tmp_path)
    for name in PROGRAMS:
        assert run([str(tmp_path / name)])


@pytest.mark.slow
def test_kernels_of_avx512_without_it(plain_programs: Path, tmp_path: Path) -> None:
    if build_native.architecture() != "x86":
        pytest.skip("the levels of AVX-512 stand on those of x86")
    flags = ("-O1", *SANITIZE, *levels.FLAGS)
    compile_programs(host_compiler(), "x86", flags, tmp_path, without_avx512=plain_programs)
    for name, arguments in EMULATED.items():
        results = run([str(tmp_path / name), *arguments])
        assert list(results) == list(build_native.ISA_FLAGS["x86"])
        assert len(set(results.values())) == 1, results


@pytest.mark.slow
def test_kernels_of_aarch64(plain_programs: Path, tmp_path: Path) -> None:
    for tool, package in ((CROSS_COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (apt-get install {package})")
    compile_programs((CROSS_COMPILER,), "arm", ("-O2", "-static"), tmp_path)
    for name, arguments in EMULATED.items():
        ours = run([str(plain_programs / name), *arguments])
        theirs = run([EMULATOR, "-cpu", "max", str(tmp_path / name), *arguments])
        assert list(theirs) == list(build_native.ISA_FLAGS["arm"])
        assert set(theirs.values()) == set(ours.values()), (ours, theirs)
    # A processor without dot products has one level less, not an illegal instruction.
    older = run([EMULATOR, "-cpu", "cortex-a53", str(tmp_path / "kernels")])
    assert list(older) == ["scalar", "neon"]
