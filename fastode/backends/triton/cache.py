"""Generated sources on disk: Triton reads the source of a kernel from its file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from fastode._environment import cache_dir


@lru_cache(maxsize=1)
def _private() -> Path:
    """A directory of this process, where the ordinary one cannot be written."""
    return Path(tempfile.mkdtemp(prefix="fastode-"))


def written(source: str) -> Path:
    """The file that holds a source, in a directory named by its hash; written whole or not at all.

    Several processes may write the same file at once: each renames one of its own into place.
    """
    key = hashlib.sha256(source.encode()).hexdigest()[:24]
    for root in (lambda: cache_dir() / "triton", _private):
        try:
            path = root() / key / "kernel.py"
            if path.is_file() and path.read_text() == source:
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(source)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            return path
        except OSError:
            continue
    raise OSError(f"generated kernels can be written neither to {cache_dir()} nor to a temporary directory")


@lru_cache(maxsize=1024)
def imported(source: str) -> ModuleType:
    """The module of a source."""
    path = written(source)
    name = f"fastode_generated_{path.parent.name}"
    found = sys.modules.get(name)
    if found is not None:
        return found
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
