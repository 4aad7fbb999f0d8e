"""The build: its decisions and messages, the compiled objects, the type stub, and what a source archive contains."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fastode._environment import _C

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "build_support").is_dir():
    pytest.skip("these tests need a checkout", allow_module_level=True)

from build_support import BuildError, cuda, extension, toolchain  # noqa: E402

OBJECTS = extension.build_folder(ROOT) / "obj"
ISAS = _C.build_info()["isas"]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on PATH"
)


@pytest.fixture(autouse=True)
def no_build_variables(monkeypatch):
    for name in (
        "FASTODE_CUDA",
        "FASTODE_CUDA_ARCHS",
        "FASTODE_ISAS",
        "CUDA_HOME",
        "CUDA_PATH",
        "CXX",
        "CXXFLAGS",
        "LDFLAGS",
    ):
        monkeypatch.delenv(name, raising=False)


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# --- the host compiler


def test_a_missing_compiler_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler found") as error:
        toolchain.find_host_compiler()
    for word in ("apt-get install build-essential", "dnf install gcc-c++", "xcode-select --install", "WSL 2", "CXX"):
        assert word in str(error.value)


def test_a_compiler_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(BuildError, match=r"CXX='/nonexistent/c\+\+' does not exist"):
        toolchain.find_host_compiler()


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", script(tmp_path / "c++", "echo 'no licence today' >&2; exit 3"))
    with pytest.raises(BuildError, match=r"cannot compile a C\+\+17 program:\nno licence today"):
        toolchain.find_host_compiler()


def test_windows_is_declared_unsupported(monkeypatch):
    monkeypatch.setattr(toolchain.sys, "platform", "win32")
    with pytest.raises(BuildError, match=r"MSVC.*WSL 2"):
        toolchain.find_host_compiler()


def fake_compiler(tmp_path: Path, target: str, refused: str = "no flag") -> str:
    body = f'case "$*" in *-dumpmachine*) echo {target};; *--version*) echo Fake 1.0;; *{refused}*) exit 1;; esac'
    return script(tmp_path / "c++", body)


@pytest.mark.parametrize(
    ("target", "refused", "isas"),
    [
        ("x86_64-linux-gnu", "no-flag", ["generic", "avx2", "avx512"]),
        ("x86_64-linux-gnu", "avx512vl", ["generic", "avx2"]),
        ("aarch64-linux-gnu", "no-flag", ["generic"]),
        ("arm64-apple-darwin24.1.0", "no-flag", ["generic"]),
    ],
)
def test_instruction_sets_are_those_of_target_and_compiler(monkeypatch, tmp_path, target, refused, isas):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, target, refused))
    compiler = toolchain.find_host_compiler()
    assert (list(compiler.isas), compiler.version, compiler.target) == (isas, "Fake 1.0", target)


@pytest.mark.parametrize(("wished", "isas"), [("generic", ["generic"]), ("avx512 generic", ["generic", "avx512"])])
def test_fewer_instruction_sets_when_asked(monkeypatch, tmp_path, wished, isas):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, "x86_64-linux-gnu", "no-flag"))
    monkeypatch.setenv("FASTODE_ISAS", wished)
    assert list(toolchain.find_host_compiler().isas) == isas


@pytest.mark.parametrize("wished", ["avx2", "generic neon"])
def test_instruction_sets_that_cannot_be_compiled_are_refused(monkeypatch, tmp_path, wished):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, "x86_64-linux-gnu", "no-flag"))
    monkeypatch.setenv("FASTODE_ISAS", wished)
    with pytest.raises(BuildError, match=r"must name generic, and others of generic avx2 avx512"):
        toolchain.find_host_compiler()


def test_launchers_are_not_handed_to_nvcc(monkeypatch, tmp_path):
    compiler = toolchain.HostCompiler(["ccache", "g++-12", "-m64"], "", "", {})
    assert compiler.executable == "g++-12"


# --- CUDA


def fake_nvcc(home: Path, compiles: bool = True) -> str:
    body = (
        'case "$*" in\n'
        "--version) echo 'Cuda compilation tools, release 12.4, V12.4.99';;\n"
        "--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\n';;\n"
        '*--dryrun*) echo \'#$ LIBRARIES=  "-L/cuda/lib/stubs" "-L/cuda/bin/../lib"\' >&2;;\n'
        f"*) {'true' if compiles else 'echo unsupported GNU version >&2; exit 1'};;\nesac"
    )
    return script(home / "bin" / "nvcc", body)


def test_cuda_is_compiled_where_nvcc_is_found(monkeypatch, tmp_path):
    nvcc = fake_nvcc(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    for mode in ("auto", "1", ""):
        monkeypatch.setenv("FASTODE_CUDA", mode)
        decision = cuda.decide("g++")
        assert (decision.nvcc, decision.version, decision.archs) == (nvcc, "12.4", ["80", "90"])
        assert decision.compile_flags[:2] == ["-ccbin", "g++"]
        assert decision.link_flags == ["-L/cuda/lib/stubs", "-L/cuda/lib", "-lcudart_static", "-lrt", "-ldl"]


def test_cuda_can_be_switched_off(monkeypatch, tmp_path):
    fake_nvcc(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FASTODE_CUDA", "0")
    assert cuda.decide("g++") == cuda.Cuda("switched off by FASTODE_CUDA=0")


def test_without_nvcc_auto_goes_on_and_1_is_an_error(monkeypatch):
    monkeypatch.setattr(cuda, "find_nvcc", lambda: "")
    assert cuda.decide("g++").reason.startswith("nvcc was not found")
    monkeypatch.setenv("FASTODE_CUDA", "1")
    with pytest.raises(BuildError, match="FASTODE_CUDA=1, but nvcc was not found"):
        cuda.decide("g++")


def test_an_nvcc_that_refuses_the_host_compiler_is_quoted(monkeypatch, tmp_path):
    fake_nvcc(tmp_path, compiles=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    decision = cuda.decide("g++")
    assert not decision.nvcc
    assert "does not work with the host compiler g++:\nunsupported GNU version" in decision.reason
    monkeypatch.setenv("FASTODE_CUDA", "1")
    with pytest.raises(BuildError, match="unsupported GNU version"):
        cuda.decide("g++")


def test_a_bad_value_of_fastode_cuda_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTODE_CUDA", "yes")
    with pytest.raises(BuildError, match="FASTODE_CUDA='yes' is not understood: set auto"):
        cuda.decide("g++")


SUPPORTED = {"75", "80", "90", "100", "120"}


@pytest.mark.parametrize(
    ("requested", "archs"),
    [
        ("", ["80", "90", "100"]),
        ("80", ["80"]),
        ("90;80", ["80", "90"]),
        ("8.0, 12.0 sm_75", ["75", "80", "120"]),
        ("90a;80;90a", ["80", "90a"]),
        ("100;90", ["90", "100"]),
    ],
)
def test_architectures_are_read(requested, archs):
    assert cuda.choose_archs(requested, SUPPORTED) == archs


def test_default_architectures_are_cut_down_to_what_nvcc_knows():
    assert cuda.choose_archs("", {"70", "75", "80"}) == ["80"]
    assert cuda.choose_archs("", {"50"}) == []


def test_architectures_asked_for_must_be_supported():
    with pytest.raises(BuildError, match="does not support 70; it supports 75 80 90 100 120"):
        cuda.choose_archs("80;70", SUPPORTED)
    with pytest.raises(BuildError, match="'hopper' is no GPU architecture"):
        cuda.choose_archs("hopper", SUPPORTED)


def test_ptx_is_kept_for_the_newest_architecture_only():
    flags = cuda.gencode_flags(["80", "90"])
    assert [flag for flag in flags if "code=compute_" in flag] == ["-gencode=arch=compute_90,code=compute_90"]
    assert len(flags) == 3


# --- the ninja file


def test_isa_files_are_compiled_once_per_instruction_set_and_others_once(tmp_path):
    for name in ("core/one.cpp", "cpu/isa/two.cpp", "cuda/three.cu", "core/one.h"):
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    compiler = toolchain.HostCompiler(["g++"], "1", "x86_64", {"generic": [], "avx2": ["-mavx2"]})
    with_cuda = cuda.Cuda("", "/opt/nvcc", "12.4", ["90"], ["-ccbin", "g++"], ["-lcudart_static"])
    for decision, cuda_objects in ((with_cuda, ["obj/cuda/three.cu.o"]), (cuda.Cuda("none"), [])):
        text = extension.ninja_file(tmp_path, tmp_path / "build" / "x", "/py", compiler, decision, "_C.so")
        built = re.findall(r"^build (\S+):", text, re.MULTILINE)
        isa_objects = ["obj/cpu/isa/two.cpp.generic.o", "obj/cpu/isa/two.cpp.avx2.o"]
        assert built == ["obj/core/one.cpp.o", *isa_objects, *cuda_objects, "_C.so"]
        assert "-DFASTODE_ISA=avx2 -mavx2" in text
        assert f"-DFASTODE_HAVE_CUDA={len(cuda_objects)}" in text
        assert "-DFASTODE_HAVE_ISA_AVX512" not in text
        assert "../../csrc/core/one.cpp" in text


@needs_compiler
def test_a_changed_header_rebuilds_what_includes_it_and_nothing_else(monkeypatch, tmp_path):
    pytest.importorskip("pybind11")
    pytest.importorskip("ninja")
    csrc = tmp_path / "csrc"
    (csrc / "isa").mkdir(parents=True)
    (csrc / "a.cpp").write_text('#include "a.h"\nint a() { return A; }\n')
    (csrc / "b.cpp").write_text("int b() { return 2; }\n")
    (csrc / "isa" / "c.cpp").write_text("namespace FASTODE_ISA { int c() { return 3; } }\n")
    (csrc / "a.h").write_text("#define A 1\n")
    monkeypatch.setenv("FASTODE_CUDA", "0")
    module = extension.build_extension(tmp_path)

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in sorted((module.parent / "obj").rglob("*.o"))}

    first = times()
    assert len(first) == 2 + len(ISAS)
    extension.build_extension(tmp_path)
    assert times() == first
    (csrc / "a.h").write_text("#define A 2\n")
    extension.build_extension(tmp_path)
    second = times()
    assert [name for name in first if first[name] != second[name]] == ["a.cpp.o"]
    (csrc / "b.cpp").write_text("this is not C++\n")
    with pytest.raises(BuildError, match="compilation failed"):
        extension.build_extension(tmp_path)


def test_the_build_never_imports_torch():
    allowed = set(sys.stdlib_module_names) | {"setuptools", "pybind11", "ninja", "build_support"}
    for path in [ROOT / "setup.py", *(ROOT / "build_support").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, path


# --- the compiled objects


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """Type letter and name of each symbol that a file defines."""
    listing = subprocess.run(
        ["nm", "--defined-only", *options, str(path)], capture_output=True, text=True, check=True
    ).stdout
    return [(words[1], " ".join(words[2:])) for words in map(str.split, listing.splitlines()) if len(words) >= 3]


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


needs_nm = pytest.mark.skipif(
    shutil.which("nm") is None or not is_elf(Path(_C.__file__)), reason="needs nm and an ELF platform"
)


def isa_objects() -> list[Path]:
    return sorted(path for path in OBJECTS.rglob("*.o") if path.parent.name == "isa")


@needs_nm
@pytest.mark.skipif(not OBJECTS.is_dir(), reason="the objects of this Python's build are not here")
def test_isa_objects_share_no_code_that_the_linker_could_merge():
    """The linker keeps one copy of a weak or unique symbol for all instruction sets, whichever that is."""
    objects = isa_objects()
    assert {path.name.split(".")[-2] for path in objects} == set(ISAS)
    for path in objects:
        isa = path.name.split(".")[-2]
        for kind, name in symbols(path, "-C"):
            assert kind not in "WVuvw", f"{path.name} defines the mergeable symbol {name}"
            assert kind.islower() or name.startswith(f"fastode::{isa}::"), f"{path.name} exports {name}"


@needs_nm
def test_only_the_init_function_is_exported():
    names = {name for _, name in symbols(Path(_C.__file__), "-D")}
    assert names == {"PyInit__C"}


@pytest.mark.skipif(shutil.which("readelf") is None or not is_elf(Path(_C.__file__)), reason="needs readelf and ELF")
def test_neither_torch_nor_openmp_nor_a_cuda_library_is_linked():
    text = subprocess.run(["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    assert needed
    assert not [name for name in needed if re.match(r"lib(torch|c10|gomp|omp|iomp|cuda|cudart)", name)]


def test_build_info_says_what_was_built():
    info = _C.build_info()
    assert info["isas"][0] == "generic"
    assert set(_C.usable_isas()) <= set(info["isas"])
    assert _C.usable_isas()[0] == "generic"
    assert info["cuda"] == bool(info["cuda_archs"]) == bool(info["nvcc"])
    assert info["compiler"]
    assert info["cuda_reason"]


# --- the stub and the source archive


Signature = list[str]


def signature(node: ast.FunctionDef) -> Signature:
    """Parameter names in order, '*' before keyword-only ones, '=' after those with a default; without self."""
    positional = [argument.arg for argument in node.args.args]
    first_default = len(positional) - len(node.args.defaults)
    names = [name + "=" * (index >= first_default) for index, name in enumerate(positional) if name != "self"]
    keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    keyword_names = [argument.arg + "=" * (default is not None) for argument, default in keywords]
    return names + ["*"] * bool(keyword_names) + keyword_names


def module_signatures(namespace: object, prefix: str = "") -> dict[str, Signature | None]:
    """Every public function, method and property (None) of the module, from the docstrings that pybind11 writes."""
    found: dict[str, Signature | None] = {}
    for name, value in vars(namespace).items():
        if isinstance(value, type):
            found |= module_signatures(value, f"{name}.")
        elif isinstance(value, property):
            found[prefix + name] = None
        elif callable(value) and (name == "__init__" or not name.startswith("_")):
            (function,) = ast.parse(f"def {value.__doc__.splitlines()[0]}: ...").body
            assert isinstance(function, ast.FunctionDef)
            found[prefix + name] = signature(function)
    return found


def stub_signatures() -> dict[str, Signature | None]:
    """The same, from the stub, where public classes inherit from private ones in the same file."""
    tree = ast.parse((ROOT / "fastode" / "_C.pyi").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found: dict[str, Signature | None] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                found[prefix + node.name] = None if node.decorator_list else signature(node)

    add(tree.body, "")
    for name, node in classes.items():
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        if not name.startswith("_") and "TypedDict" not in bases:
            for base in bases:
                add(classes[base].body, f"{name}.")
            add(node.body, f"{name}.")
    return found


def test_the_stub_matches_the_module():
    assert stub_signatures() == module_signatures(_C)


def test_the_stub_names_the_keys_of_the_dicts():
    tree = ast.parse((ROOT / "fastode" / "_C.pyi").read_text(encoding="utf-8"))
    keys = {
        node.name: {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "TypedDict" for b in node.bases)
    }
    assert keys["BuildInfo"] == set(_C.build_info())
    assert keys["CudaRuntime"] == set(_C.cuda_runtime())
    for device in _C.cuda_devices():
        assert keys["CudaDevice"] == set(device)


def test_the_source_archive_contains_everything_needed_to_build(tmp_path):
    pytest.importorskip("setuptools")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    for name in ("build_support", "csrc", "fastode"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", ".*"))
    code = "from setuptools import build_meta; import sys; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for folder in ("build_support", "csrc", "fastode"):
        for path in (copy / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert os.path.relpath(path, copy) in names
    assert {"setup.py", "pyproject.toml", "LICENSE"} <= names
