"""The host C++ compiler: which one, whether it works, and which flags and instruction sets it takes."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import BuildError

INSTALL_HELP = """\
fastode compiles a C++17 extension, so a C++ compiler (GCC 9 or newer, or Clang 10 or newer) is needed. Install one:
  Debian, Ubuntu:  sudo apt-get install build-essential python3-dev
  Fedora, RHEL:    sudo dnf install gcc-c++ python3-devel
  macOS:           xcode-select --install
  conda:           conda install -c conda-forge cxx-compiler
  Windows:         use WSL 2 (a Linux environment inside Windows): wsl --install
or name one in the environment variable CXX, for example CXX=clang++."""

# Everything is position independent and hidden; only PyInit__C is exported. Floating-point contraction is off so that
# results do not depend on what the optimiser happens to fuse: kernels ask for a fused multiply-add where they want it.
# Nobody reads errno or floating-point exception flags, and giving both up changes no result but lets loops vectorise.
BASE_FLAGS = [
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wnon-virtual-dtor",
]

# Flags of each instruction set that csrc/**/isa/*.cpp are compiled for, in rising order of preference. These files may
# not throw and may not emit symbols that the linker could merge between instruction sets (see csrc/core/isa.h).
ISA_COMMON_FLAGS = ["-fno-exceptions", "-fno-rtti"]
ISA_FLAGS_X86_64 = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        "-mprefer-vector-width=512",
    ],
}
_LAUNCHERS = {"ccache", "sccache", "distcc"}


@dataclass(frozen=True)
class HostCompiler:
    """A C++ compiler that has been seen to compile."""

    command: list[str]
    version: str
    target: str
    isas: dict[str, list[str]]

    @property
    def executable(self) -> str:
        """The compiler itself, without a launcher such as ccache: what nvcc takes as ``-ccbin``."""
        return next(word for word in self.command if Path(word).name not in _LAUNCHERS)


def find_host_compiler() -> HostCompiler:
    """Return the compiler of ``CXX``, else the first of c++, g++, clang++ on PATH.

    Raises:
        BuildError: there is none, or it cannot compile C++17, with what to install.
    """
    if sys.platform == "win32":
        raise BuildError(
            "fastode does not build on Windows with MSVC yet. Use WSL 2 (wsl --install), where it builds as on Linux."
        )
    wanted = os.environ.get("CXX", "").strip()
    command = shlex.split(wanted) or [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    if not command:
        raise BuildError(f"no C++ compiler found (looked for c++, g++ and clang++ on PATH).\n{INSTALL_HELP}")
    if shutil.which(command[0]) is None:
        raise BuildError(f"the compiler named by CXX={wanted!r} does not exist.\n{INSTALL_HELP}")
    source = "#include <atomic>\n#include <thread>\nint main() { if constexpr (sizeof(int) > 0) return 0; }\n"
    problem = try_compile(command, ["-std=c++17"], source)
    if problem:
        raise BuildError(f"{shlex.join(command)} cannot compile a C++17 program:\n{problem}\n{INSTALL_HELP}")
    version = output_of([*command, "--version"]).splitlines()[0]
    target = output_of([*command, "-dumpmachine"]).strip() or platform.machine()
    isas = {"generic": list[str]()}
    if target.startswith(("x86_64", "amd64")):
        isas = {name: flags for name, flags in ISA_FLAGS_X86_64.items() if not flags or accepts(command, flags)}
    if wished := os.environ.get("FASTODE_ISAS", "").split():
        if "generic" not in wished or not set(wished) <= set(isas):
            raise BuildError(f"FASTODE_ISAS={' '.join(wished)!r} must name generic, and others of {' '.join(isas)}.")
        isas = {name: flags for name, flags in isas.items() if name in wished}
    return HostCompiler(command, version, target, isas)


def accepts(command: list[str], flags: list[str]) -> bool:
    """Whether the compiler takes these flags."""
    return not try_compile(command, [*flags, "-Werror"], "int main() { return 0; }\n")


def try_compile(command: list[str], flags: list[str], source: str) -> str:
    """Compile ``source`` to an object; return '' if that works, else what the compiler said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.cpp")
        path.write_text(source)
        try:
            done = subprocess.run(
                [*command, *flags, "-c", str(path), "-o", str(path.with_suffix(".o"))], capture_output=True, text=True
            )
        except OSError as error:
            return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}")


def output_of(command: list[str]) -> str:
    """Standard output of a command, '' if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return ""
