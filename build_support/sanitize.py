"""The kernels under a sanitizer: ``python -m build_support.sanitize address|undefined|thread``.

Copies the package and its tests to build/sanitize-KIND, compiles the extension there with the sanitizer, and runs the
tests of the kernels and a sample of the fuzzers with its runtime loaded first. What is found goes to files of that
folder, so that findings in processes that tests start count too.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import BuildError, say
from .toolchain import find_host_compiler, output_of

ROOT = Path(__file__).resolve().parent.parent
_COPIED = (
    "build_support",
    "csrc",
    "fastode",
    "tests",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "Makefile",
)
# Assertions of the standard library see an index out of range that stays within the same allocation.
_FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
TESTS = [
    *("test_thread_pool", "test_interrupts", "test_concurrent_solves", "test_combine", "test_stepper_kernels"),
    *("test_tile_kernels", "test_tile_solve", "test_cpu_backend", "test_batch_independence", "test_solve_status"),
    *("test_events", "test_between_steps", "test_gradients", "test_solve_inputs"),
]
"""Modules of tests/ that run the compiled kernels."""


@dataclass(frozen=True)
class Sanitizer:
    """How to compile with one, and how to run with its runtime."""

    flags: list[str]
    runtime: str
    options: dict[str, str]
    environment: dict[str, str]


# Leaks: Python and torch keep much for ever. Forks: tests do that on purpose.
SANITIZERS = {
    "address": Sanitizer(
        ["-fsanitize=address"],
        "libasan.so",
        {"detect_leaks": "0", "detect_stack_use_after_return": "1", "check_initialization_order": "1"},
        {},
    ),
    # Null pointers and objects too small are for the address sanitizer: checks of every reference make the bindings
    # compile for minutes.
    "undefined": Sanitizer(
        ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr,null,object-size"],
        "libubsan.so",
        {"print_stacktrace": "1"},
        {},
    ),
    # Waits of OpenMP's runtime, which is compiled without it, cannot be seen: only our own workers.
    "thread": Sanitizer(
        ["-fsanitize=thread"],
        "libtsan.so",
        {"die_after_fork": "0", "exitcode": "0", "suppressions": str(ROOT / "build_support" / "thread_sanitizer.txt")},
        {"FASTODE_OPENMP": "0", "OMP_NUM_THREADS": "1"},
    ),
}


def copy_sources(target: Path) -> None:
    """Copies what is needed; times stay, so that ninja compiles what has changed only."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        source, copy = ROOT / name, target / name
        if source.is_file():
            shutil.copy2(source, copy)
            continue
        module = [path.rename(target / path.name) for path in copy.glob("_C*.so")]
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
        for path in module:
            path.rename(copy / path.name)


def build(kind: str, target: Path) -> None:
    """Compiles the extension in ``target``.

    Raises:
        BuildError: it does not compile.
    """
    words = {"CXXFLAGS": [*_FLAGS, *SANITIZERS[kind].flags], "LDFLAGS": SANITIZERS[kind].flags}
    environment = {**os.environ, **{name: shlex.join(value) for name, value in words.items()}, "FASTODE_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if subprocess.run(command, cwd=target, env=environment).returncode != 0:
        raise BuildError(f"the extension does not compile with the {kind} sanitizer.")


def surroundings(kind: str, target: Path) -> dict[str, str]:
    """Environment variables of processes that load the extension in ``target``.

    Raises:
        BuildError: the compiler has no runtime of this sanitizer.
    """
    sanitizer = SANITIZERS[kind]
    command = find_host_compiler().command
    # Exceptions pass through the runtime, which needs the C++ library to be there when it starts.
    libraries = [
        output_of([*command, f"-print-file-name={name}"]).strip() for name in (sanitizer.runtime, "libstdc++.so")
    ]
    if not os.path.isabs(libraries[0]):
        raise BuildError(f"{shlex.join(command)} has no {sanitizer.runtime}: install its sanitizers, or set CXX=g++.")
    options = {**sanitizer.options, "log_path": str(target / "finding")}
    name = {"address": "ASAN", "undefined": "UBSAN", "thread": "TSAN"}[kind] + "_OPTIONS"
    return {
        **os.environ,
        **sanitizer.environment,
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(target),
        "PYTHONMALLOC": "malloc",
        name: ":".join(f"{key}={value}" for key, value in options.items()),
    }


def findings(target: Path) -> list[Path]:
    """What a run has found: a file per process."""
    return sorted(path for path in target.glob("finding.*") if path.stat().st_size)


def main() -> None:
    """Builds, runs, and shows what was found; exit code 1 if anything was, or if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(SANITIZERS))
    parser.add_argument("--fuzz-minutes", type=float, default=2.0, help="how long to fuzz (default 2)")
    parser.add_argument("--build-only", action="store_true", help="compile and end")
    parser.epilog = "Other arguments are for pytest, instead of the tests of the kernels."
    given, for_pytest = parser.parse_known_args()
    target = ROOT / "build" / f"sanitize-{given.kind}"
    copy_sources(target)
    try:
        build(given.kind, target)
        environment = surroundings(given.kind, target)
    except BuildError as error:
        sys.exit(f"\n{error}\n")
    if given.build_only:
        return
    for old in target.glob("finding.*"):
        old.unlink()
    tests = for_pytest or [f"tests/{name}.py" for name in TESTS]
    runs = [[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]]
    if given.fuzz_minutes > 0:
        fuzz = ["-m", "tests.fuzz", "--minutes", str(given.fuzz_minutes), "--kinds", "solves,calls"]
        runs.append([sys.executable, "-W", "ignore", *fuzz])
    failed = 0
    for command in runs:
        say(shlex.join(command[1:]))
        failed += subprocess.run(command, cwd=target, env=environment).returncode != 0
    found = findings(target)
    for path in found[:20]:
        print(f"\n== {path}\n{path.read_text(encoding='utf-8', errors='replace')[:8000]}")
    say(f"{given.kind} sanitizer: {len(found)} processes with findings, {failed} runs with failures")
    sys.exit(bool(found or failed))


if __name__ == "__main__":
    main()
