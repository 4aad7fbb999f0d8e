"""What fastode takes from its surroundings: the compiled extension and environment variables.

Read when fastode is imported:

``FASTODE_ISA``
    Instruction set of the compiled CPU kernels: ``generic``, ``avx2`` or ``avx512``. Default: the best one here.
``FASTODE_NUM_THREADS``
    Threads of the compiled CPU kernels, 1 to 1024. Default: as many as torch uses at the time of the solve.
``FASTODE_OPENMP``
    ``1``, the default: these threads are those of torch's OpenMP runtime, where it has one. ``0``: workers of our own,
    which sleep between solves.
``FASTODE_CHECK``
    ``1``: every solve by a program is compared with the user's field, as within ``fastode.checking()``. Default: ``0``.
``FASTODE_CACHE_DIR``
    Directory for generated GPU kernels. Default: ``fastode`` in ``XDG_CACHE_HOME``, or in ``~/.cache``.

Read when fastode is built (``setup.py``): ``FASTODE_CUDA`` (``auto``, ``0``, ``1``), ``FASTODE_CUDA_ARCHS`` (such as
``"80;90"``), ``FASTODE_ISAS`` (instruction sets, such as ``"generic avx2"``; default: all), ``CXX``, ``CXXFLAGS``,
``LDFLAGS``, ``MAX_JOBS``.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import torch

_LEAST_TORCH = (2, 11)
"""The oldest torch that is tested, as in pyproject.toml."""
if tuple(map(int, torch.__version__.split(".")[:2])) < _LEAST_TORCH:
    raise ImportError(
        f"fastode needs torch {'.'.join(map(str, _LEAST_TORCH))} or newer, this is {torch.__version__}: "
        "python -m pip install --upgrade torch"
    )

try:
    from fastode import _C
except ImportError as error:
    _suffix = sysconfig.get_config_var("EXT_SUFFIX")
    _built = sorted(path.name for path in Path(__file__).parent.glob("_C.*") if path.suffix != ".pyi")
    if f"_C{_suffix}" in _built:
        _why = f"fastode/_C{_suffix} cannot be loaded: {error}. It was built for another system or is out of date."
    elif _built:
        _why = f"fastode._C is compiled for another Python: found {', '.join(_built)}, need _C{_suffix}."
    else:
        _why = "fastode._C, the compiled part of fastode, is not there."
    raise ImportError(
        f"{_why} Build it with 'pip install -e .' in a checkout, or reinstall fastode with this Python's pip."
    ) from error

__all__ = ["CHECK", "OPENMP", "_C", "cache_dir", "get_num_threads", "set_num_threads", "use_num_threads"]


def _threads_from(text: str | None) -> int | None:
    """The value of ``FASTODE_NUM_THREADS``, None if it is unset or empty."""
    if text is None or not text.strip():
        return None
    if not text.strip().isdecimal() or not 1 <= int(text) <= 1024:
        raise ValueError(f"FASTODE_NUM_THREADS must be a whole number from 1 to 1024, got {text!r}")
    return int(text)


def _choose_isa(name: str | None) -> None:
    """Apply ``FASTODE_ISA``."""
    if name is None or not name.strip():
        return
    try:
        _C.set_isa(name.strip().lower())
    except ValueError as error:
        raise ValueError(f"FASTODE_ISA={name!r}: {error}") from None


def _switch(name: str, default: bool) -> bool:
    """The value of a variable that is 0 or 1."""
    text = os.environ.get(name, "").strip()
    if text not in ("", "0", "1"):
        raise ValueError(f"{name} must be 0 or 1, got {text!r}")
    return default if not text else text == "1"


def _cache_dir_from(own: str | None, common: str | None) -> Path:
    """The value of ``FASTODE_CACHE_DIR``, or its default."""
    if own is not None and own.strip():
        return Path(own).expanduser()
    return Path(common if common and Path(common).is_absolute() else Path.home() / ".cache") / "fastode"


_choose_isa(os.environ.get("FASTODE_ISA"))
OPENMP: bool = _C.share_openmp(_switch("FASTODE_OPENMP", True))
"""Whether threads are those of torch's OpenMP runtime."""
_wanted_threads = _threads_from(os.environ.get("FASTODE_NUM_THREADS"))
CHECK: bool = _switch("FASTODE_CHECK", False)
"""Whether every solve by a program is compared with the user's field."""
_wanted_cache_dir = os.environ.get("FASTODE_CACHE_DIR")


def set_num_threads(n: int | None) -> None:
    """Choose how many threads the compiled CPU kernels use.

    Args:
        n: 1 to 1024, or None (the default) to follow ``torch.get_num_threads()``.

    Raises:
        ValueError: n is out of range.
    """
    global _wanted_threads
    if n is not None:
        _C.set_num_threads(n)
    _wanted_threads = n


def get_num_threads() -> int:
    """How many threads the compiled CPU kernels use in a solve that starts now."""
    return torch.get_num_threads() if _wanted_threads is None else _wanted_threads


def use_num_threads() -> None:
    """Make the thread pool as large as ``get_num_threads`` says; backends call this at the start of each solve."""
    _C.set_num_threads(min(get_num_threads(), 1024))


def cache_dir() -> Path:
    """Where generated kernels are kept; it may not exist yet."""
    return _cache_dir_from(_wanted_cache_dir, os.environ.get("XDG_CACHE_HOME"))
