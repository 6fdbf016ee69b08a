"""The same sources are compiled once, wherever they lie, and others are not taken for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import build_cache
import build_native
import build_tools
from support.building import CHECKOUT, cpu_plan, fake_tree, forget_settings

pytestmark = CHECKOUT


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_settings(monkeypatch)
    monkeypatch.setenv("FINESCOPE_BUILD_CACHE", str(tmp_path / "kept"))


@pytest.fixture(scope="module")
def plan() -> build_native.Plan:
    return cpu_plan()


def logging(folder: Path, name: str, then: str) -> Path:
    """A program that notes its arguments in ``<name>.log`` and does what ``then`` does with them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.log\nexec {then} "$@"\n')
    path.chmod(0o755)
    return path


def compiled(log: Path) -> int:
    """How often a program was called for a source of the checkout."""
    lines = log.read_text().splitlines()
    return sum(" -c " in line and "/csrc/" in line.partition(" -c ")[2] for line in lines)


@pytest.mark.usefixtures("plan")
def test_a_second_install_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", str(logging(tmp_path / "bin", "cxx", build_tools.find_compiler()[0])))
    log = tmp_path / "bin/cxx.log"
    first = build_native.build("cpu", fake_tree(tmp_path / "one", cuda=False))
    said = capfd.readouterr().err
    assert "compiling what changed of 2 files" in said
    assert "compiled in" in said
    assert compiled(log) == 2
    shutil.copytree(tmp_path / "one/csrc", tmp_path / "two/csrc")
    second = build_native.build("cpu", tmp_path / "two")
    assert "was compiled before; taken from" in capfd.readouterr().err
    assert compiled(log) == 2
    assert sorted(second.objects) == ["_C", "libfinescope"]
    for name, path in second.objects.items():
        assert path.read_bytes() == first.objects[name].read_bytes()

    source = tmp_path / "two/csrc/bindings/cpu/operations.cpp"
    source.write_text(source.read_text() + "int g() { return 2; }\n")
    build_native.build("cpu", tmp_path / "two")
    assert compiled(log) == 4


@pytest.mark.usefixtures("plan")
def test_another_python_compiles_only_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(logging(tmp_path / "bin", "cxx", build_tools.find_compiler()[0])))
    log = tmp_path / "bin/cxx.log"
    root = fake_tree(tmp_path / "tree", cuda=False)
    build_native.build("cpu", root, tmp_path / "one")
    assert compiled(log) == 2
    monkeypatch.setattr(sys, "version", "4.0 (another)")
    outcome = build_native.build("cpu", root, tmp_path / "other")
    assert compiled(log) == 3
    assert "python/module.cpp" in [line for line in log.read_text().splitlines() if "/csrc/" in line][-1]
    assert outcome.objects["_C"].parent == tmp_path / "other"
    # It is linked with the library that was kept, and finds it where both are installed.
    for path in outcome.objects.values():
        shutil.copy2(path, tmp_path / "bin")
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"  # in a process that has no library of that name yet
    subprocess.run([sys.executable, "-c", load, tmp_path / "bin" / outcome.objects["_C"].name], check=True)


@pytest.mark.usefixtures("plan")
def test_without_a_cache_everything_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(logging(tmp_path / "bin", "cxx", build_tools.find_compiler()[0])))
    for number, setting in enumerate(("off", "/dev/null/nowhere")):
        monkeypatch.setenv("FINESCOPE_BUILD_CACHE", setting)
        for name in ("one", "two"):
            build_native.build("cpu", fake_tree(tmp_path / setting.strip("/") / name, cuda=False))
        assert compiled(tmp_path / "bin/cxx.log") == 4 * (number + 1)


def test_what_decides_an_object(tmp_path: Path, plan: build_native.Plan) -> None:
    root = fake_tree(tmp_path / "tree", cuda=False)
    (root / "csrc/cpu").mkdir()
    target = build_native.make_plan("cpu", root).targets[0]
    keys = [build_native.object_key(plan, target, root)]
    assert keys == [build_native.object_key(plan, target, root)]
    moved = replace(plan, torch=replace(plan.torch, root=Path("/elsewhere/torch")))
    flags = tuple(flag.replace(str(plan.torch.root), "/elsewhere/torch") for flag in plan.flags)
    assert build_native.object_key(replace(moved, flags=flags), target, root) == keys[0]
    for other in (
        replace(plan, flags=(*plan.flags, "-O1")),
        replace(plan, torch=replace(plan.torch, version="2.99.0")),
        replace(plan, compiler=("false",)),
    ):
        keys.append(build_native.object_key(other, target, root))
    (root / "csrc/new.h").touch()
    keys.append(build_native.object_key(plan, target, root))
    (root / "csrc/new.h").write_text("//")
    keys.append(build_native.object_key(plan, target, root))
    (root / "csrc/new.h").rename(root / "csrc/newer.h")
    keys.append(build_native.object_key(plan, target, root))
    assert len(set(keys)) == len(keys) == 7


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cache, "KEPT", 3)
    made = tmp_path / "_C.so"
    made.write_bytes(b"object")
    for number in range(3):
        build_cache.keep(f"key{number}", made)
        build_cache.folder().joinpath(f"key{number}").touch()
        stamp = 1_700_000_000 + number
        os.utime(build_cache.folder() / f"key{number}", (stamp, stamp))
    assert build_cache.find("key0", "_C.so") is not None  # asked for, so no longer the oldest
    build_cache.keep("key3", made)
    assert {path.name for path in build_cache.folder().iterdir()} == {"key0", "key2", "key3"}
    assert build_cache.find("key1", "_C.so") is None
    assert build_cache.find("key3", "_C.so").read_bytes() == b"object"


@pytest.mark.usefixtures("plan")
def test_ccache_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    logging(programs, "ccache", "env")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    build_native.build("cpu", fake_tree(tmp_path / "one", cuda=False))
    assert compiled(programs / "ccache.log") == 2
    monkeypatch.setenv("CXX", f"ccache {build_tools.find_compiler()[0]}")
    assert build_native.make_plan("cpu", tmp_path / "one").launcher == ()
