"""The rules that ninja gets: one for each tool, flags per file. Standard library only."""

from __future__ import annotations

import shlex
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from build_native import Plan


def _escape(path: Path | str) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _join(words: tuple[str, ...]) -> str:
    return shlex.join(words).replace("$", "$$")


def object_name(target: str) -> str:
    """The file name of an object: libraries serve every Python, modules are for this one."""
    of_python = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    return target + (".so" if target.startswith("lib") else of_python)


def ninja_text(plan: Plan, root: Path) -> str:
    """The build.ninja of a plan; paths of outputs are relative to the build folder."""
    torch_link = (f"-L{plan.torch.lib}", "-Wl,--as-needed", "-ltorch_cpu", "-ltorch")
    # Only the entry point is visible: no symbol of ours may meet one of another extension.
    export_map = root / "csrc/exports.map"
    exports = (f"-Wl,--version-script={export_map}",) if export_map.exists() else ()
    defines = tuple(flag for flag in plan.flags if flag.startswith(("-DTORCH", "-I", "-isystem")))
    nvcc_includes = tuple(flag.replace("-isystem", "-I") for flag in defines)
    lines = [
        "ninja_required_version = 1.5",
        f"launcher = {_join(plan.launcher)}",
        f"cxx = {_join(plan.compiler)}",
        f"flags = {_join(plan.flags)}",
        "rule cxx",
        "  command = $launcher $cxx -MMD -MF $out.d $flags $isa_flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = C++ $in $isa_flags",
        "rule link",
        f"  command = $cxx -shared -Wl,-O1 {_join(exports)} $in $link_flags -o $out",
        "  description = link $out",
    ]
    if plan.nvcc is not None:
        host = f"-ccbin {_join(plan.compiler[-1:])}"
        nvcc_link = tuple(f"-Xlinker={flag.removeprefix('-Wl,')}" for flag in (*exports, *torch_link))
        lines += [
            f"nvcc = {_join((plan.nvcc,))}",
            f"nvcc_flags = {_join((*plan.nvcc_flags, *nvcc_includes))} {host}",
            "rule nvcc",
            "  command = $launcher $nvcc -MD -MF $out.d $nvcc_flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = CUDA $in",
            # nvcc knows where its own runtime lies. The static one: the object then loads beside a torch that
            # was built for another minor version of CUDA.
            "rule link_cuda",
            f"  command = $nvcc -shared --cudart=static {host} {_join(nvcc_link)} $in -o $out",
            "  description = link $out",
        ]
    wait = f" | {_escape(export_map)}" if exports else ""
    for target in plan.targets:
        objects = []
        for source in target.sources:
            name = source.path.relative_to(root / "csrc")
            made = _escape(f"{target.name}/{name}.o")
            rule = "nvcc" if source.path.suffix == ".cu" else "cxx"
            lines.append(f"build {made}: {rule} {_escape(source.path)}")
            if source.flags:
                lines.append(f"  isa_flags = {_join(source.flags)}")
            objects.append(made)
        link = "link_cuda" if target.cuda else "link"
        made = object_name(target.name)
        libraries = [object_name(name) for name in target.libraries]
        after = f" || {' '.join(libraries)}" if libraries else ""
        lines.append(f"build {_escape(made)}: {link} {' '.join(objects)}{wait}{after}")
        # A library by its name, so that one that is loaded already serves; else it lies beside the module.
        of_module = ("-L.", *(f"-l:{name}" for name in libraries), "-Wl,-rpath,$ORIGIN")
        of_library = (f"-Wl,-soname,{made}", *torch_link)
        if not target.cuda:
            lines.append(f"  link_flags = {_join(of_module if libraries else of_library)}")
    return "\n".join(lines) + "\n"
