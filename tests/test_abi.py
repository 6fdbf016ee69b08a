"""A native object may use torch's C shims only, and nothing of Python: one binary must serve every torch from
2.10 on, and every Python.

A single C++-mangled torch, c10 or at symbol ties the object to one release, and shows only when a user has
another. The dynamic symbol table is read here, without tools that a test machine may lack.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import finescope

PACKAGE = Path(finescope.__file__).parent
OBJECTS = sorted(PACKAGE.glob("libfinescope*.so"))
ALL = [*OBJECTS, *sorted(PACKAGE.glob(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"))]


def named(path: Path) -> str:
    return path.name.partition(".")[0]


each_operations_object = pytest.mark.parametrize("path", OBJECTS, ids=named)
each_object = pytest.mark.parametrize("path", ALL, ids=named)
FORBIDDEN = re.compile(r"^_Z.*(?:2at|3c10|5torch|6caffe2)")
IN_TORCH_2_10 = {
    "STABLE_TORCH_LIBRARY_IMPL",
    "TORCH_ABI_VERSION",
    "TORCH_BOX",
    "TORCH_FAILURE",
    "TORCH_SUCCESS",
    "TORCH_VERSION",
    "aoti_torch_get_current_cuda_stream",
    "torch::headeronly::Layout::Strided",
    "torch::headeronly::ScalarType",
    "torch::stable::Tensor",
    "torch::stable::accelerator::DeviceGuard",
    "torch::stable::contiguous",
    "torch::stable::copy_",
    "torch::stable::detail::from",
    "torch::stable::detail::to",
    "torch::stable::get_num_threads",
    "torch::stable::narrow",
    "torch::stable::new_empty",
    "torch::stable::parallel_for",
    "torch::stable::to",
    "torch::stable::transpose",
    "torch::stable::view",
    "torch::stable::zero_",
}

pytestmark = pytest.mark.skipif(not OBJECTS, reason="no native object is installed")


def dynamic_symbols(path: Path) -> list[tuple[str, bool]]:
    """The dynamic symbols of a 64-bit little-endian ELF file: (name, whether it is undefined here)."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + size * i) for i in range(count)]
    found = []
    for kind, start, length, link in ((s[1], s[4], s[5], s[6]) for s in sections):
        if kind != 11:  # SHT_DYNSYM
            continue
        names = sections[link][4]
        for at in range(start, start + length, 24):
            name, _, _, section = struct.unpack_from("<IBBH", data, at)
            end = data.index(b"\0", names + name)
            found.append((data[names + name : end].decode(), section == 0))
    return found


def forbidden(symbols: list[tuple[str, bool]]) -> list[str]:
    """The undefined symbols that would have to come from torch's C++ interface."""
    return [name for name, undefined in symbols if undefined and FORBIDDEN.match(name)]


def test_the_check_rejects_cpp_symbols_of_torch() -> None:
    bad = ["_ZN3c105ErrorC1Ev", "_ZNK2at10TensorBase4dataEv", "_ZN5torch3jit6ModuleD1Ev", "_ZTIN3c105ErrorE"]
    assert forbidden([(name, True) for name in bad]) == bad
    good = ["torch_call_dispatcher", "aoti_torch_get_dim", "_ZNSt6vectorIlE4dataEv", "PyObject_Call"]
    assert forbidden([(name, True) for name in good] + [(name, False) for name in bad]) == []


@each_operations_object
def test_only_c_shims(path: Path) -> None:
    symbols = dynamic_symbols(path)
    undefined = {name for name, missing in symbols if missing}
    assert "torch_library_impl" in undefined, "the object registers nothing with torch"
    assert forbidden(symbols) == []
    assert [name for name in undefined if name.startswith(("Py", "_Py"))] == []


def test_the_module_is_of_python_and_has_no_operations() -> None:
    """The other way round: all that a version of Python decides is in the module, and nothing else is."""
    (module,) = ALL[len(OBJECTS) :]
    undefined = {name for name, missing in dynamic_symbols(module) if missing}
    assert any(name.startswith("Py") for name in undefined)
    assert not {name for name in undefined if "torch" in name}
    exported = {name for name, missing in dynamic_symbols(PACKAGE / "libfinescope.so") if not missing}
    assert {name for name in undefined if name.startswith("finescope_")} == {
        name for name in exported if "finescope" in name
    }


def test_the_operations_need_no_module() -> None:
    """What another Python, or a program without any, would do with the object."""
    script = """
import sys, torch, finescope.ops
values, indices, weight = torch.randn(7, 5), torch.randint(0, 20, (7, 5)), torch.randn(20, 37)
before = torch.ops.finescope.sparse_decode(values, indices, weight, None)
torch.ops.load_library(sys.argv[1])
assert torch._C._dispatch_has_kernel_for_dispatch_key("finescope::sparse_decode", "CPU")
assert torch.equal(torch.ops.finescope.sparse_decode(values, indices, weight, None), before)
assert "finescope._C" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", script, str(PACKAGE / "libfinescope.so")]
    environment = {**os.environ, "FINESCOPE_NATIVE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@each_operations_object
def test_shims_are_of_the_oldest_supported_torch(path: Path) -> None:
    """Shims of later releases are named here, so that one more cannot slip in with newer headers."""
    later = {"torch_from_blob", "torch_library_def_with_tags", "torch_library_set_python_module"}
    assert not {name for name, missing in dynamic_symbols(path) if missing} & later


def test_names_are_in_the_headers_of_the_oldest_supported_torch() -> None:
    """The suite builds with one torch only. A new name goes on the list when torch 2.10's headers have it."""
    source = Path(finescope.__file__).parent.parent / "csrc/bindings"
    if not source.is_dir():
        pytest.skip("the source of the native objects is not here")
    text = "\n".join(path.read_text() for path in sorted(source.rglob("*.*")))
    used = set(re.findall(r"\b(?:torch::[A-Za-z_:]+\w|(?:aoti_torch|STABLE_TORCH|TORCH)_\w+)", text))
    assert "torch::stable::Tensor" in used
    assert used - IN_TORCH_2_10 == set()


@each_object
def test_exports_only_plain_c(path: Path) -> None:
    exported = {name for name, undefined in dynamic_symbols(path) if not undefined and "finescope" in name}
    assert [name for name in exported if not re.fullmatch(r"finescope_[a-z_]+", name)] == []
    assert bool(exported) == (path.name == "libfinescope.so")


@each_object
def test_no_path_of_the_building_machine(path: Path) -> None:
    assert str(Path(finescope.__file__).parent.parent).encode() + b"/csrc" not in path.read_bytes()
