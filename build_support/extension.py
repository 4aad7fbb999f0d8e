"""Writes build.ninja for ``fastode._C`` from the files found under csrc/ and runs it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from . import BuildError, say
from .cuda import NVCC_FLAGS, Cuda, decide
from .toolchain import BASE_FLAGS, INSTALL_HELP, ISA_COMMON_FLAGS, HostCompiler, find_host_compiler


def build_folder(root: Path) -> Path:
    """Where objects of this Python and platform live: kept between builds, so that rebuilds are incremental."""
    return root / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def build_extension(root: Path) -> Path:
    """Compile everything under ``root``/csrc into the extension module and return its path.

    Raises:
        BuildError: a tool is missing or compilation fails.
    """
    compiler = find_host_compiler()
    say(f"C++ compiler {shlex.join(compiler.command)} ({compiler.version}), instruction sets {' '.join(compiler.isas)}")
    cuda = decide(compiler.executable)
    if cuda.nvcc:
        say(f"CUDA sources are compiled: {cuda.nvcc} {cuda.version}, architectures {' '.join(cuda.archs)}")
    else:
        say(f"CUDA sources are left out: {cuda.reason}")
    folder = build_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    include = _python_include()
    _copy_pybind11(folder / "include")
    write_if_changed(folder / "generated" / "build_config.h", config_header(compiler, cuda))
    versions = [compiler.version, compiler.target, cuda.version, sys.version]
    write_if_changed(folder / "toolchain.txt", "\n".join(versions) + "\n")
    write_if_changed(folder / "exports.map", "{ global: PyInit__C; local: *; };\n")
    module = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    write_if_changed(folder / "build.ninja", ninja_file(root, folder, include, compiler, cuda, module))
    command = [_find_ninja(), "-C", str(folder)]
    if os.environ.get("MAX_JOBS"):
        command += ["-j", os.environ["MAX_JOBS"]]
    if subprocess.run(command).returncode != 0:
        raise BuildError("compilation failed; the compiler's messages are above.")
    return folder / module


def ninja_file(root: Path, folder: Path, include: str, compiler: HostCompiler, cuda: Cuda, module: str) -> str:
    """The text of build.ninja: paths are relative to ``folder``, every object also depends on toolchain.txt."""
    up = os.path.relpath(root / "csrc", folder)
    defines = [f"-DFASTODE_HAVE_ISA_{name.upper()}=1" for name in compiler.isas]
    defines += [f"-DFASTODE_HAVE_CUDA={int(bool(cuda.nvcc))}"]
    includes = [f"-I{up}", "-Igenerated"]
    system = ["-isystem", "include", "-isystem", include]
    host_flags = [*BASE_FLAGS, *defines, *includes, *system, *_words("CXXFLAGS")]
    if sys.platform == "darwin":
        link_flags = ["-bundle", "-undefined", "dynamic_lookup", "-Wl,-exported_symbol,_PyInit__C"]
    else:
        link_flags = ["-shared", "-Wl,--version-script,exports.map", "-Wl,-z,relro,-z,now"]
    link_flags += ["-pthread", *cuda.link_flags, *_words("LDFLAGS")]
    nvcc_flags = [*cuda.compile_flags, *NVCC_FLAGS, "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
    nvcc_flags += [*defines, *includes]

    lines = ["ninja_required_version = 1.8"]
    lines += _variable("cxx", compiler.command) + _variable("flags", host_flags)
    lines += ["rule cxx", "  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out"]
    lines += ["  depfile = $out.d", "  deps = gcc", "  description = C++ $out"]
    lines += _variable("link_flags", link_flags)
    # Sources are listed in the order of the link line: objects, then libraries.
    lines += ["rule link", "  command = $cxx $in -o $out $link_flags", "  description = link $out"]
    if cuda.nvcc:
        lines += _variable("nvcc", [cuda.nvcc]) + _variable("nvcc_flags", nvcc_flags)
        lines += ["rule nvcc", "  command = $nvcc $nvcc_flags -MD -MF $out.d -c $in -o $out"]
        lines += ["  depfile = $out.d", "  deps = gcc", "  description = CUDA $out"]

    objects = []

    def compile_one(rule: str, source: Path, suffix: str = "", extra: list[str] | None = None) -> None:
        name = source.relative_to(root / "csrc").as_posix()
        out = _escape(f"obj/{name}{suffix}.o")
        lines.append(f"build {out}: {rule} {_escape(f'{up}/{name}')} | toolchain.txt")
        lines.extend("  " + line for line in _variable("extra", extra or []))
        objects.append(out)

    for source in sorted((root / "csrc").rglob("*.cpp")):
        if source.parent.name != "isa":
            compile_one("cxx", source)
            continue
        for isa, flags in compiler.isas.items():
            compile_one("cxx", source, f".{isa}", [*ISA_COMMON_FLAGS, f"-DFASTODE_ISA={isa}", *flags])
    if cuda.nvcc:
        for source in sorted((root / "csrc").rglob("*.cu")):
            compile_one("nvcc", source)
    lines += [f"build {_escape(module)}: link {' '.join(objects)} | toolchain.txt", f"default {_escape(module)}"]
    return "\n".join(lines) + "\n"


def config_header(compiler: HostCompiler, cuda: Cuda) -> str:
    """What ``fastode._C.build_info()`` returns, as macros."""
    values = {
        "COMPILER": compiler.version,
        "TARGET": compiler.target,
        "ISAS": " ".join(compiler.isas),
        "NVCC": cuda.version,
        "CUDA_ARCHS": " ".join(cuda.archs),
        "CUDA_REASON": cuda.reason,
    }
    lines = [f"#define FASTODE_BUILD_{name} {_c_string(value)}" for name, value in values.items()]
    return "#pragma once\n" + "\n".join(lines) + "\n"


def write_if_changed(path: Path, text: str) -> None:
    """Write a file only when its contents differ, so that nothing is rebuilt for an equal one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _python_include() -> str:
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise BuildError(f"Python.h is not in {include}: the headers of this Python are missing.\n{INSTALL_HELP}")
    return include


def _copy_pybind11(target: Path) -> None:
    """Copy pybind11's headers into the build folder.

    pip's isolated environments lie in a new temporary folder each time; without the copy every command line would
    change and every rebuild would be a full one.
    """
    import pybind11

    stamp = target / "pybind11.version"
    if stamp.exists() and stamp.read_text() == pybind11.__version__:
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(Path(pybind11.get_include(), "pybind11"), target / "pybind11")
    stamp.write_text(pybind11.__version__)


def _find_ninja() -> str:
    try:
        import ninja

        candidate = shutil.which("ninja", path=ninja.BIN_DIR)
    except ImportError:
        candidate = None
    found = candidate or shutil.which("ninja")
    if not found:
        raise BuildError("ninja was not found: pip install ninja (pip does so itself unless --no-build-isolation).")
    return found


def _words(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def _variable(name: str, words: list[str]) -> list[str]:
    return [f"{name} = {shlex.join(words).replace('$', '$$')}"]


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _c_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
