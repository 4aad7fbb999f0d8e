"""Programs as text that reads like mathematics."""

from __future__ import annotations

import numpy as np

from fastode.program.ir import COTANGENT, LEAVES, SAMPLE, SHARED, STATE, TIME, Leaf, Map, Program, Value

_INFIX = {
    "add": ("+", 1),
    "sub": ("-", 1),
    "mul": ("*", 2),
    "div": ("/", 2),
    "eq": ("==", 0),
    "ne": ("!=", 0),
    "lt": ("<", 0),
    "le": ("<=", 0),
    "gt": (">", 0),
    "ge": (">=", 0),
    "logical_and": ("and", 0),
    "logical_or": ("or", 0),
}
_ATOM = 9


class _Printer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.names: dict[int, str] = {}
        self.lines: list[str] = []
        self.uses: dict[int, int] = {}
        for value in program.values():
            for arg in value.args:
                self.uses[id(arg)] = self.uses.get(id(arg), 0) + 1

    def text(self, value: Value) -> tuple[str, int]:
        """An expression, and how strongly it binds."""
        known = self.names.get(id(value))
        return (known, _ATOM) if known is not None else self.expression(value)

    def argument(self, value: Value, binding: int) -> str:
        text, own = self.text(value)
        return f"({text})" if own < binding else text

    def expression(self, value: Value) -> tuple[str, int]:
        op = value.op
        if op == STATE:
            return "y", _ATOM
        if op == TIME:
            return "t", _ATOM
        if op == COTANGENT:
            return "g", _ATOM
        if op in (SHARED, SAMPLE):
            leaf = (self.program.shared if op == SHARED else self.program.sample)[value.data[0]]
            return (leaf.name if op == SHARED else f"{leaf.name}[i]"), _ATOM
        if op == "const":
            return f"{value.data[0]:g}", _ATOM if value.data[0] >= 0 else 1
        if op in _INFIX:
            sign, binding = _INFIX[op]
            left = self.argument(value.args[0], binding)
            right = self.argument(value.args[1], binding + (op in ("sub", "div")))
            return f"{left} {sign} {right}", binding
        if op == "neg":
            return f"-{self.argument(value.args[0], 3)}", 2
        if op == "square":
            return f"{self.argument(value.args[0], 4)}^2", 3
        if op == "pow":
            return f"{self.argument(value.args[0], 4)}^{self.argument(value.args[1], 4)}", 3
        if op == "matmul":
            m, k, n = value.data[:3]
            left = self.matrix(value.args[0], m, k, value.data[3:6])
            return f"{left} @ {self.matrix(value.args[1], k, n, value.data[6:9])}", 2
        if op == "gather":
            assert value.index is not None
            return f"{self.argument(value.args[0], _ATOM)}[{_index_text(value.index, value.args[0].size)}]", _ATOM
        if op == "cat":
            return f"[{', '.join(self.text(arg)[0] for arg in value.args)}]", _ATOM
        if op in ("sum", "amax"):
            outer, reduced, inner = value.data
            name = "sum" if op == "sum" else "max"
            over = "" if outer * inner == 1 else f" over {reduced} of {outer}x{reduced}x{inner}"
            return f"{name}({self.text(value.args[0])[0]}{over})", _ATOM
        if op == "stop" and value.gradient is not None:
            return self.expression(value.args[0])
        if op == "stop":
            return f"constant({self.text(value.args[0])[0]})", _ATOM
        return f"{op}({', '.join(self.text(arg)[0] for arg in value.args)})", _ATOM

    def matrix(self, value: Value, rows: int, cols: int, at: tuple[int, int, int]) -> str:
        text = self.argument(value, 3)
        offset, rs, cs = at
        if (rs, cs) == (cols, 1) or rows == 1 or cols == 1:
            suffix = ""
        elif (rs, cs) == (1, rows):
            suffix = "^T"
        else:
            suffix = f"<strides {rs}, {cs}>"
        if offset == 0 and rows * cols == value.size:
            return text + suffix
        if (rs, cs) == (cols, 1) or rows == 1 or cols == 1:
            return f"{text}[{offset}:{offset + rows * cols}]"
        return f"{text}[{offset}:]{suffix}"

    def run(self) -> str:
        program = self.program
        for value in program.values():
            if value is program.output or value.op in (STATE, TIME, SHARED, SAMPLE, COTANGENT, "const"):
                continue
            text, _ = self.expression(value)
            view = value.op == "gather" and value.args[0].op in LEAVES
            if (self.uses.get(id(value), 0) > 1 and not view) or len(text) > 70:
                name = f"v{len(self.lines)}"
                self.lines.append(f"    {name} = {text}  ({value.size})")
                self.names[id(value)] = name
        body = [*self.lines, f"    dy/dt = {self.expression(program.output)[0]}"]
        head = [f"program of y ({program.dim})"]
        for kind, leaves in (("shared", program.shared), ("per sample", program.sample)):
            if leaves:
                head.append(f"    {kind}: {', '.join(map(leaf_text, leaves))}")
        return "\n".join(head + body)


def leaf_text(leaf: Leaf) -> str:
    """Name, shape and, where it is a cast of half precision, the type that it is cast from."""
    shape = "x".join(map(str, leaf.shape)) or "number"
    return f"{leaf.name} {shape}" + (f" of {leaf.half}" if leaf.half else "")


def _index_text(index: Map, size: int) -> str:
    if len(index) == 1:
        return str(int(index[0]))
    if np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        return f"{index[0]}:{index[0] + len(index)}"
    steps = np.diff(index)
    if len(steps) and (steps == steps[0]).all():
        if steps[0] == 0:
            return f"{index[0]} x{len(index)}"
        return f"{index[0]}::{steps[0]}"
    shown = ", ".join(map(str, index[:6]))
    return shown + (", ..." if len(index) > 6 else "")


def program_text(program: Program) -> str:
    """The program, one named value a line, ``dy/dt`` last. [i] marks what differs from sample to sample."""
    return _Printer(program).run()
