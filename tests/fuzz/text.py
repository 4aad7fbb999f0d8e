"""Source text of a field from its features, and the module made from it."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.feature import Feature

STYLES = ("module", "closure", "plain class", "method", "lambda", "wrapper", "partial")

ENDINGS = {
    "fresh": "",
    "transposed": "dy = dy.t().contiguous().t()",
    "slice": "dy = torch.cat([dy, dy], -1)[:, : {D}]",
    "strided": "dy = dy.repeat_interleave(2, -1)[:, ::2]",
    "rows of a wider": "dy = torch.stack([dy, 2 * dy], 1)[:, 0]",
    "one buffer": "if OUT and OUT[0].shape == dy.shape:\n    dy = OUT[0].copy_(dy)\nOUT[:] = [dy]",
}
"""The layout of what a field returns; ``one buffer`` is the same tensor every time, and only for values."""

_IMPORTS = """import argparse
import array
import collections
import contextvars
import ctypes
import dataclasses
import enum
import functools
import io
import itertools
import logging
import math
import operator
import os
import random
import time
import types
import typing
import weakref

import numpy as np
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize as parametrize
import torch.nn.utils.prune as prune
import torch.utils.checkpoint
from torch import nn

torch.manual_seed(0)
OUT = []
"""

_UNPACK = {
    "tensor": "pass",
    "tuple": "y = torch.cat(y, -1)",
    "dict": 'y = torch.cat([y["a"], y["b"]], -1)',
}
_PACK = {
    "tensor": "return dy",
    "tuple": "return dy[:, :1], dy[:, 1:]",
    "dict": 'return {"a": dy[:, :1], "b": dy[:, 1:]}',
}


@dataclass(frozen=True)
class Shape:
    """What the text depends on besides its features.

    Attributes:
        batch, size: of the states, (B, D).
        style: one of ``STYLES``.
        state: one of ``tensor``, ``tuple``, ``dict``.
        controls: whether the field takes controls.
        ending: one of ``ENDINGS``.
    """

    batch: int
    size: int
    style: str
    state: str
    controls: bool
    ending: str


def _numbered(text: str, number: int, own: str, shape: Shape) -> str:
    text = text.replace("{D}", str(shape.size)).replace("{B}", str(shape.batch))
    text = re.sub(r"\$(\w+)", rf"{own}\1_{number}", text)
    text = re.sub(r"@(?!@|property|staticmethod|classmethod|dataclasses|functools)(\w+)", rf"\1_{number}", text)
    return re.sub(r'@(?=")', f"_{number}", text).replace("@@", "@")


def _lines(features: list[Feature], what: Callable[[Feature], str], own: str, shape: Shape) -> str:
    parts = [_numbered(what(f), i, own, shape) for i, f in enumerate(features)]
    return "\n".join(part for part in parts if part)


def _block(*parts: str) -> str:
    text = "\n".join(part for part in parts if part)
    return textwrap.indent(text or "pass", "    ")


def _declared(features: list[Feature], shape: Shape, keyword: str, sigil: str, only: int | None = None) -> str:
    names = [
        _numbered(name, i, "", shape)
        for i, feature in enumerate(features)
        for name in feature.writes
        if name.startswith(sigil) and only in (None, i)
    ]
    return f"{keyword} {', '.join(names)}" if names else ""


def source(features: list[Feature], shape: Shape) -> str:
    """The text of a module that defines ``field``, ``changes``, ``effects()`` and ``params()``."""
    is_closure = shape.style in ("closure", "partial")
    own = "" if is_closure else "self."
    arguments = "t, y, c" if shape.controls else "t, y"

    def scope(only: int | None = None) -> str:
        lines = [_declared(features, shape, "global", "@", only)]
        if is_closure:
            lines.append(_declared(features, shape, "nonlocal", "$", only))
        return "\n".join(line for line in lines if line)

    top = _lines(features, lambda f: f.top, own, shape)
    init = _lines(features, lambda f: f.init, own, shape)
    body = _block(
        scope(),
        _UNPACK[shape.state],
        "h = y",
        _lines(features, lambda f: f.forward, own, shape),
        "dy = torch.sin(h) - 0.3 * y",
        ENDINGS[shape.ending].replace("{D}", str(shape.size)),
        _PACK[shape.state],
    )
    changes = [(i, change) for i, feature in enumerate(features) for change in feature.changes]
    me = "" if is_closure else "self"
    changed = "\n\n\n".join(
        f"def change_{k}({me}):\n" + _block(scope(i), _numbered(text, i, own, shape))
        for k, (i, text) in enumerate(changes)
    )
    names = "[" + ", ".join(f"change_{k}" for k in range(len(changes))) + "]"
    seen = ", ".join(
        f'"{f.name} {i}": {_numbered(f.effects, i, own, shape)}' for i, f in enumerate(features) if f.effects
    )
    owned = ", ".join(f"*{_numbered(f.params, i, own, shape)}" for i, f in enumerate(features) if f.params)
    asked = f"def effects({me}):\n    return {{{seen}}}\n\n\ndef params({me}):\n    return [{owned}]"
    if is_closure:
        signature = f"{arguments}, scale" if shape.style == "partial" else arguments
        inner = body.replace("dy = torch.sin(h)", "dy = scale * torch.sin(h)") if shape.style == "partial" else body
        given = "functools.partial(field, scale=0.9)" if shape.style == "partial" else "field"
        made = _block(
            init, f"def field({signature}):\n{inner}\n", changed, asked, f"return {given}, {names}, effects, params"
        )
        return f"{_IMPORTS}\n{top}\n\n\ndef make():\n{made}\n\n\nfield, changes, effects, params = make()\n"
    base, call = ("", "__call__") if shape.style == "plain class" else ("(nn.Module)", "forward")
    if shape.style == "method":
        call = "rhs"
    parent = "super().__init__()\n" if base else ""
    made = _block(f"def __init__(self):\n{_block(parent + init)}\n", f"def {call}(self, {arguments}):\n{body}")
    given = {
        "module": "made",
        "plain class": "made",
        "method": "made.rhs",
        "lambda": f"lambda {arguments}: made({arguments})",
        "wrapper": "Outer(made)",
    }[shape.style]
    outer = ""
    if shape.style == "wrapper":
        outer = (
            f"\n\nclass Outer(nn.Module):\n    def __init__(self, inner):\n        super().__init__()\n"
            f"        self.inner = inner\n\n    def forward(self, {arguments}):\n"
            f"        return self.inner({arguments})\n"
        )
    return (
        f"{_IMPORTS}\n{top}\n\n\nclass Field{base}:\n{made}\n{outer}\n\n{changed}\n\n\n{asked}\n\n\nmade = Field()\n"
        f"field = {given}\nchanges = [functools.partial(change, made) for change in {names}]\n"
        "effects = functools.partial(effects, made)\nparams = functools.partial(params, made)\n"
    )


@dataclass
class Made:
    """A field that has just been made from its text.

    Attributes:
        field: what is solved.
        changes: made one after the other between solves.
        effects: what the calls left behind.
        params: tensors to differentiate by.
    """

    field: Callable[..., Any]
    changes: list[Callable[[], Any]]
    effects: Callable[[], dict[str, Any]]
    params: Callable[[], Iterable[Any]]


class Source:
    """Text in a file of its own, from which equal fields are made anew; a context manager that removes it."""

    def __init__(self, text: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self._path = Path(self._folder.name) / "written_field.py"
        self._path.write_text(text, encoding="utf-8")
        self._names: list[str] = []

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in self._names:
            sys.modules.pop(name, None)
        self._folder.cleanup()

    def make(self) -> Made:
        """A new module from the text."""
        name = f"written_field_{id(self)}_{len(self._names)}"
        spec = importlib.util.spec_from_file_location(name, self._path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        self._names.append(name)
        spec.loader.exec_module(module)
        return Made(module.field, module.changes, module.effects, module.params)
