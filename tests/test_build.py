"""The build: flags per file, what each FINESCOPE_BUILD does, and words for everything that can be missing.

One instruction-set flag on a shared file is a crash on somebody else's CPU; it compiles and passes every
other test here. So the rules that ninja gets are read and checked, and so are the object files.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build_native
import build_tools
import finescope

ROOT = Path(finescope.__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "build_native.py").exists(), reason="not a checkout")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CXX",
        "FINESCOPE_BUILD",
        "TORCH_CUDA_ARCH_LIST",
        "CUDA_HOME",
        "CUDA_PATH",
        "CUDACXX",
        "MAX_JOBS",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def plan() -> object:
    try:
        return build_native.make_plan("cpu", ROOT)
    except build_native.BuildError as error:
        pytest.skip(str(error))


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
        ("topk/avx512_vnni.cpp", "avx512_vnni"),
        ("topk/avx512_bf16.cpp", "avx512_bf16"),
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


def test_flags_per_file(plan: object) -> None:
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
        "bindings/cpu/module.cpp",
    } <= set(statements)
    for name, statement in statements.items():
        isa = build_native.file_isa(Path(name))
        if statement["rule"].startswith("link"):
            continue
        if isa is None:
            assert "isa_flags" not in statement, name
        else:
            flags = statement["isa_flags"].split()
            assert f"-DFINESCOPE_ISA={isa}" in flags
            assert tuple(flags[:-1]) == build_native.ISA_FLAGS[build_native.architecture()][isa]


@pytest.mark.parametrize("arch", ["x86", "arm"])
def test_levels_contain_the_ones_before(arch: str) -> None:
    levels = list(build_native.ISA_FLAGS[arch].values())
    for lower, higher in itertools.pairwise(levels):
        assert set(lower) < set(higher)


def test_object_files_share_no_code_across_levels() -> None:
    """A weak symbol made with AVX-512 flags may be the copy that the linker keeps for everybody."""
    objects = sorted((ROOT / "build").glob("native-*/_C/cpu/**/*.o"))
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


def test_planned_isas_are_the_ones_with_sources(plan: object) -> None:
    defined = {flag for flag in plan.flags if flag.startswith("-DFINESCOPE_HAVE_")}
    assert defined == {f"-DFINESCOPE_HAVE_{isa.upper()}=1" for isa in plan.isas}
    named = {build_native.file_isa(path) for path in build_native.cpu_kernels()} - {None}
    assert set(plan.isas) <= named


def fake_tree(root: Path, *, cuda: bool) -> Path:
    """A checkout with one C++ source and, if asked for, one CUDA kernel."""
    (root / "csrc/bindings/cpu").mkdir(parents=True)
    (root / "csrc/bindings/cpu/module.cpp").write_text(
        '#include <Python.h>\nextern "C" int f() { return 1; }\n'
    )
    if cuda:
        (root / "csrc/cuda").mkdir()
        (root / "csrc/cuda/twice.cu").write_text(
            "#include <torch/csrc/stable/tensor.h>\n"
            "__global__ void twice(float* x) { x[threadIdx.x] *= 2; }\n"
            'extern "C" void run(float* x) { twice<<<1, 32>>>(x); }\n'
        )
    return root


def test_cuda_without_kernels_fails_loudly_and_auto_says_so(tmp_path: Path, plan: object) -> None:
    root = fake_tree(tmp_path, cuda=False)
    with pytest.raises(build_native.BuildError, match=r"FINESCOPE_BUILD=cuda: .*no CUDA kernels"):
        build_native.build("cuda", root)
    assert "no CUDA kernels" in build_native.make_plan("auto", root).skipped["cuda"]


def test_cuda_without_nvcc_fails_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: object
) -> None:
    root = fake_tree(tmp_path, cuda=True)
    monkeypatch.setattr(build_tools, "find_nvcc", _raise_no_nvcc)
    with pytest.raises(build_native.BuildError, match=r"FINESCOPE_BUILD=cuda: nvcc not found"):
        build_native.build("cuda", root)
    planned = build_native.make_plan("auto", root)
    assert [target.name for target in planned.targets] == ["_C"]
    assert "nvcc not found" in planned.skipped["cuda"]


def _raise_no_nvcc() -> str:
    raise build_native.BuildError("nvcc not found: install the CUDA toolkit, or set CUDA_HOME")


@pytest.mark.slow
def test_cuda_object_compiles_against_any_torch(tmp_path: Path, plan: object) -> None:
    """With nvcc the CUDA object is built, also where torch is a CPU build, and apart from the CPU object."""
    try:
        build_tools.find_nvcc()
    except build_native.BuildError as error:
        pytest.skip(str(error))
    outcome = build_native.build("cuda", fake_tree(tmp_path, cuda=True))
    assert sorted(outcome.objects) == ["_C", "_C_cuda"]
    assert all(path.exists() for path in outcome.objects.values())
    assert b"libcudart" not in outcome.objects["_C"].read_bytes()


def fake_nvcc(folder: Path, release: str) -> str:
    """A compiler that says its version and fails at everything else."""
    path = folder / "nvcc"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || exit 1\n'
        f"echo 'Cuda compilation tools, release {release}, V{release}.88'\n"
    )
    path.chmod(0o755)
    return str(path)


def torch_of(cuda: str | None, hip: str | None = None) -> object:
    return build_tools.Torch(Path("torch"), "2.11.0", cuda, hip)


@pytest.mark.parametrize(
    ("release", "cuda", "driver"),
    [
        ("13.0", None, None),  # a torch without CUDA: a check that everything compiles
        ("13.2", "13.0", None),
        ("12.4", "12.9", (12, 2)),
        ("12.8", "13.0", None),  # every driver for CUDA 13 runs code for CUDA 12
        ("13.0", "12.8", (13, 0)),
    ],
)
def test_nvcc_and_torch_that_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    release: str,
    cuda: str | None,
    driver: tuple[int, int] | None,
) -> None:
    monkeypatch.setattr(build_tools, "driver_version", lambda: driver)
    build_tools.check_nvcc_fits(fake_nvcc(tmp_path, release), torch_of(cuda))


@pytest.mark.parametrize(("driver", "has"), [(None, "none"), ((12, 9), "one for CUDA 12.9")])
def test_an_nvcc_that_is_too_new_for_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: tuple[int, int] | None, has: str
) -> None:
    monkeypatch.setattr(build_tools, "driver_version", lambda: driver)
    message = (
        rf"CUDA 13\.0 \(.*nvcc\) but torch 2\.11\.0 of CUDA 12\.8: .* this machine has {has}; "
        "set CUDA_HOME to a toolkit of CUDA 12, or install a torch built for CUDA 13"
    )
    with pytest.raises(build_native.BuildError, match=message):
        build_tools.check_nvcc_fits(fake_nvcc(tmp_path, "13.0"), torch_of("12.8"))


def test_a_torch_for_rocm_gets_no_cuda_object(tmp_path: Path) -> None:
    with pytest.raises(build_native.BuildError, match="built for ROCm"):
        build_tools.check_nvcc_fits(fake_nvcc(tmp_path, "13.0"), torch_of(None, "6.4"))


def test_an_nvcc_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(build_native.BuildError, match="cannot be run"):
        build_tools.nvcc_version(str(tmp_path / "nothing"))
    with pytest.raises(build_native.BuildError, match="names no CUDA release"):
        build_tools.nvcc_version(shutil.which("true") or "true")


def test_nvcc_that_disagrees_is_a_reason_for_auto_and_an_error_for_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: object
) -> None:
    root = fake_tree(tmp_path / "tree", cuda=True)
    found = build_tools.find_torch()
    monkeypatch.setattr(
        build_tools, "find_torch", lambda: build_tools.Torch(found.root, found.version, "12.8")
    )
    monkeypatch.setattr(build_tools, "driver_version", lambda: None)
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path, "13.0"))
    assert "install a torch built for CUDA 13" in build_native.make_plan("auto", root).skipped["cuda"]
    with pytest.raises(build_native.BuildError, match="FINESCOPE_BUILD=cuda: nvcc is of CUDA 13"):
        build_native.build("cuda", root)


def test_a_failing_nvcc_costs_auto_only_the_cuda_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: object
) -> None:
    root = fake_tree(tmp_path / "tree", cuda=True)
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path, "13.0"))
    outcome = build_native.build("auto", root)
    assert sorted(outcome.objects) == ["_C"]
    assert outcome.objects["_C"].exists()
    assert "nvcc failed" in outcome.skipped["cuda"]
    assert outcome.architectures == ()
    with pytest.raises(build_native.BuildError, match="FINESCOPE_BUILD=cuda: the compiler failed"):
        build_native.build("cuda", root)


def test_the_record_says_what_the_cuda_object_is_compiled_for(tmp_path: Path) -> None:
    outcome = build_native.Outcome("auto", {}, {}, "2.11.0", "c++", ("sm_80", "sm_90", "compute_90"))
    record = json.loads(outcome.write_record(tmp_path).read_text())
    assert record["cuda_architectures"] == ["sm_80", "sm_90", "compute_90"]


def test_cuda_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_native.cuda_architectures() == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    )
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a 10.0")
    assert build_native.cuda_architectures() == (
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
    )
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build_native.BuildError, match="TORCH_CUDA_ARCH_LIST: 'Hopper'"):
        build_native.cuda_architectures()


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


def test_a_failing_source_costs_auto_only_the_object(tmp_path: Path, plan: object) -> None:
    root = fake_tree(tmp_path, cuda=False)
    (root / "csrc/bindings/cpu/broken.cpp").write_text("#error broken on purpose\n")
    with pytest.raises(build_native.BuildError, match="the compiler failed"):
        build_native.build("cpu", root)
    assert "the compiler failed" in build_native.build("auto", root).skipped["cpu"]


def fake_torch(folder: Path, version: str, *, headers: bool = True) -> Path:
    torch = folder / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = '12.8'\n")
    if headers:
        (torch / "include/torch/csrc/stable").mkdir(parents=True)
        (torch / "include/torch/csrc/stable/library.h").touch()
    return folder


@pytest.fixture
def no_importable_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_tools.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_importable_torch")
class TestFindTorch:
    """The search for headers when torch cannot be imported, as under pip's build isolation."""

    def test_in_the_installing_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            build_tools,
            "_site_folders",
            lambda: iter([tmp_path / "none", fake_torch(tmp_path, "2.11.0+cu128")]),
        )
        found = build_tools.find_torch()
        assert (found.root, found.version, found.cuda) == (tmp_path / "torch", "2.11.0+cu128", "12.8")

    def test_built_for_rocm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = fake_torch(tmp_path, "2.11.0+rocm6.4") / "torch"
        (root / "version.py").write_text(
            "__version__ = '2.11.0+rocm6.4'\ncuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n"
        )
        monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([tmp_path]))
        found = build_tools.find_torch()
        assert (found.cuda, found.hip) == (None, "6.4")

    def test_sysconfig_folders_are_searched(self) -> None:
        import sysconfig

        assert Path(sysconfig.get_paths()["platlib"]) in list(build_tools._site_folders())

    def test_active_environment_is_searched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        assert tmp_path / "lib" / python / "site-packages" in list(build_tools._site_folders())

    @pytest.mark.parametrize(
        ("version", "headers", "message"),
        [
            ("2.9.1", True, "torch 2.9.1 .* is older than 2.10"),
            ("2.13.0", False, "without its C\\+\\+ headers"),
        ],
    )
    def test_unfit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, headers: bool, message: str
    ) -> None:
        fake_torch(tmp_path, version, headers=headers)
        monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([tmp_path]))
        with pytest.raises(build_native.BuildError, match=message):
            build_tools.find_torch()

    def test_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([]))
        with pytest.raises(build_native.TorchMissingError, match="torch is not installed"):
            build_tools.find_torch()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "tag"),
    [
        ({"FINESCOPE_BUILD": "none"}, "py3-none-any"),
        ({"CXX": "false"}, "py3-none-any"),
        ({"FINESCOPE_BUILD": "cpu"}, "linux"),
    ],
    ids=["none", "no compiler", "cpu"],
)
def test_wheel_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], tag: str
) -> None:
    """A wheel is platform-specific exactly when a native object is in it."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT,
        tree,
        ignore=shutil.ignore_patterns(".git", "build", "*.so", ".venv", "*.egg-info", "_build.json"),
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
        tree,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert tag in wheel.name
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("finescope/_C.") for name in names) == (tag == "linux")
    assert "finescope/_build.json" in names


def test_scripts_do_not_import_torch() -> None:
    """Asking for metadata must not need torch, nor wait for it."""
    assert "import torch" not in "".join(
        (ROOT / name).read_text() for name in ("setup.py", "build_native.py", "build_tools.py")
    )


@pytest.mark.usefixtures("no_importable_torch")
def test_torch_is_asked_for_only_where_it_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: object
) -> None:
    monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([]))
    assert build_native.only_torch_is_missing()
    monkeypatch.setenv("CXX", "false")
    assert not build_native.only_torch_is_missing()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(build_tools, "_site_folders", lambda: iter([fake_torch(tmp_path, "2.10.0")]))
    assert not build_native.only_torch_is_missing()
