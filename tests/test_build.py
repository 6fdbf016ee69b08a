"""The build: flags per file, what each FINESCOPE_BUILD does, and words for compilers that fail.

One instruction-set flag on a shared file is a crash on somebody else's CPU; it compiles and passes every
other test here. So the rules that ninja gets are read and checked, and so are the object files.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import build_native
import build_tools
from support.building import CHECKOUT, ROOT, cpu_plan, fake_tree, forget_settings

pytestmark = CHECKOUT


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture(scope="module")
def plan() -> build_native.Plan:
    return cpu_plan()


def builds(text: str) -> dict[str, dict[str, str]]:
    """The build statements of a build.ninja by input: rule, and variables such as isa_flags."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        statement = re.fullmatch(r"build (\S+): (\w+) (.+)", line)
        if statement:
            current = {"rule": statement[2]}
            name = statement[3].split()[-1].partition("/csrc/")[2]
            found[statement[1] if statement[2].startswith("link") else name] = current
        elif line.startswith("  ") and current:
            name, _, value = line.strip().partition(" = ")
            current[name] = value
        else:
            current = {}
    return found


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("codes/sparse_scalar.cpp", "scalar"),
        ("codes/sparse_avx2.cpp", "avx2"),
        ("sparse_search/avx512.cpp", "avx512"),
        ("topk/avx_vnni.cpp", "avx_vnni"),
        ("topk/avx512_vnni.cpp", "avx512_vnni"),
        ("topk/avx512_bf16.cpp", "avx512_bf16"),
        ("topk/amx.cpp", "amx"),
        ("topk/neon.cpp", "neon"),
        ("topk/neon_dot.cpp", "neon_dot"),
        ("topk/whole_avx2.cpp", "avx2"),
        ("avx2/dispatch.cpp", None),
        ("topk/dispatch.cpp", None),
        ("isa.cpp", None),
        ("myavx2.cpp", None),
    ],
)
def test_file_names_name_their_instruction_set(name: str, level: str | None) -> None:
    assert build_native.file_isa(Path(name)) == level


def test_flags_per_file(plan: build_native.Plan) -> None:
    text = build_native.ninja_text(plan, ROOT)
    shared_flags = re.search(r"^flags = (.*)$", text, re.MULTILINE)[1].split()
    if build_native.architecture() == "x86":
        assert "-march=x86-64" in shared_flags
        assert [
            flag
            for flag in shared_flags
            if flag.startswith("-m") and flag not in ("-march=x86-64", "-mtune=generic")
        ] == []
    assert "-ffp-contract=off" in shared_flags
    assert (
        "native" not in text.replace("build_native", "").replace("-ffile-prefix-map", "")
        or "-march=native" not in text
    )
    statements = builds(text)
    assert {
        "cpu/topk/scalar.cpp",
        "cpu/codes/sparse_scalar.cpp",
        "cpu/isa.cpp",
        "bindings/cpu/interface.cpp",
        "bindings/python/module.cpp",
    } <= set(statements)
    for name, statement in statements.items():
        isa = build_native.file_isa(Path(name))
        if statement["rule"].startswith("link"):
            continue
        if name.startswith("bindings/python"):
            assert all(flag.startswith("-isystem") for flag in statement["isa_flags"].split())
        elif isa is None:
            assert "isa_flags" not in statement, name
        else:
            flags = statement["isa_flags"].split()
            assert f"-DFINESCOPE_ISA={isa}" in flags
            assert tuple(flags[:-1]) == build_native.ISA_FLAGS[build_native.architecture()][isa]


@pytest.mark.parametrize("arch", ["x86", "arm"])
def test_levels_contain_the_ones_before(arch: str) -> None:
    levels = dict(build_native.ISA_FLAGS[arch])
    # Processors with AVX-512 need not have it.
    aside = levels.pop("avx_vnni", None)
    for lower, higher in itertools.pairwise(levels.values()):
        assert set(lower) < set(higher)
    assert aside is None or set(levels["avx2"]) < set(aside)


def test_object_files_share_no_code_across_levels() -> None:
    """A weak symbol made with AVX-512 flags may be the copy that the linker keeps for everybody."""
    objects = sorted((ROOT / "build").glob("native-*/libfinescope/cpu/**/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("no object files, or no nm")
    for path in objects:
        isa = build_native.file_isa(Path(path.stem))
        if isa in (None, "scalar"):
            continue
        listed = subprocess.run(
            ["nm", "--defined-only", str(path)], capture_output=True, text=True, check=True
        )
        weak = [line.split()[-1] for line in listed.stdout.splitlines() if line.split()[-2] in "WVu"]
        assert [name for name in weak if f"{len(isa)}{isa}" not in name] == [], path.name


def test_planned_isas_are_the_ones_with_sources(plan: build_native.Plan) -> None:
    defined = {flag for flag in plan.flags if flag.startswith("-DFINESCOPE_HAVE_")}
    assert defined == {f"-DFINESCOPE_HAVE_{isa.upper()}=1" for isa in plan.isas}
    named = {build_native.file_isa(path) for path in build_native.cpu_kernels()} - {None}
    assert set(plan.isas) <= named


def test_unknown_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINESCOPE_BUILD", "gpu")
    with pytest.raises(
        build_native.BuildError, match="FINESCOPE_BUILD='gpu' is not one of auto, none, cpu, cuda"
    ):
        build_native.mode_from_environment()


def test_none_builds_nothing(tmp_path: Path) -> None:
    outcome = build_native.build("none", tmp_path)
    assert outcome.objects == {}
    assert set(outcome.skipped.values()) == {"FINESCOPE_BUILD=none"}


@pytest.mark.parametrize(
    ("cxx", "message"),
    [
        ("no-such-compiler-anywhere", "CXX names no-such-compiler-anywhere"),
        ("false", "cannot compile C\\+\\+17"),
    ],
)
def test_without_a_working_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cxx: str, message: str
) -> None:
    monkeypatch.setenv("CXX", cxx)
    root = fake_tree(tmp_path, cuda=False)
    with pytest.raises(build_native.BuildError, match=message):
        build_native.build("cpu", root)
    outcome = build_native.build("auto", root)
    assert outcome.objects == {}
    assert re.search(message, outcome.skipped["cpu"])


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build_native.BuildError, match="no C\\+\\+ compiler found: install one"):
        build_tools.find_compiler()


def test_a_failing_source_costs_auto_only_the_object(tmp_path: Path, plan: build_native.Plan) -> None:
    root = fake_tree(tmp_path, cuda=False)
    (root / "csrc/bindings/cpu/broken.cpp").write_text("#error broken on purpose\n")
    with pytest.raises(build_native.BuildError, match="the compiler failed"):
        build_native.build("cpu", root)
    assert "the compiler failed" in build_native.build("auto", root).skipped["cpu"]
