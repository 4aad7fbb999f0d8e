"""Puts this package in the place of torchdiffeq."""

from __future__ import annotations

import importlib
import pkgutil
import sys


def install() -> None:
    """Makes ``import torchdiffeq`` and imports from inside of it mean this package, in the whole process.

    Raises:
        RuntimeError: torchdiffeq itself has been imported already, so that others may hold parts of it.
    """
    package = importlib.import_module("fastode.compat.torchdiffeq")
    present = sys.modules.get("torchdiffeq")
    if present is not None and present is not package:
        raise RuntimeError("torchdiffeq has been imported already; call install() before anything imports it")
    sys.modules["torchdiffeq"] = package
    inner = importlib.import_module("fastode.compat.torchdiffeq._impl")
    sys.modules["torchdiffeq._impl"] = inner
    for found in pkgutil.iter_modules(inner.__path__):
        module = importlib.import_module(f"{inner.__name__}.{found.name}")
        sys.modules[f"torchdiffeq._impl.{found.name}"] = module
