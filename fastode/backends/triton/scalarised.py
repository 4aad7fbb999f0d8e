"""Programs in the scalarised shape: each component of a value is a vector over the samples of the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastode.backends.triton.code import Accumulator, Code, Routine
from fastode.backends.triton.pointwise import expression, folded, takes_plain_numbers
from fastode.backends.triton.text import in_kind, literal
from fastode.program.ir import COTANGENT, POINTWISE, SAMPLE, SHARED, STATE, TIME, Accumulation, Value


@dataclass(frozen=True)
class Term:
    """One component: a name or expression, or a known number; a vector over samples or one for all."""

    text: str
    number: float | None = None
    vector: bool = True


class _Body:
    """Writes values into a routine, component by component."""

    def __init__(self, code: ScalarisedCode, routine: Routine) -> None:
        self.code, self.routine = code, routine
        self.known: dict[int, list[Term]] = {}

    def number(self, value: float) -> Term:
        return Term(literal(value, self.code.dtype), value, False)

    def leaf(self, kind: str, leaf: int, position: int) -> Term:
        name = f"{kind}{leaf}_{position}"
        if kind == SAMPLE:
            load = f"tl.load(sample{leaf}_ptr + sample * sample{leaf}_stride + {position})"
        else:
            load = f"tl.load(shared{leaf}_ptr + {position})"
        load = in_kind(load, self.code.half(kind, leaf), self.code.kind)
        if kind == SHARED and not self.code.launch.hoist:
            if f"{name} = {load}" not in self.routine.body.lines:
                self.routine.body.add(f"{name} = {load}")
            self.routine.constants[f"shared{leaf}_ptr"] = None
        else:
            self.code.loads[name] = load
            self.routine.constants[name] = None
        return Term(name, None, kind == SAMPLE)

    def terms(self, value: Value) -> list[Term]:
        found = self.known.get(id(value))
        if found is None:
            found = self.known[id(value)] = self.compute(value)
        return found

    def one(self, terms: Sequence[Term], i: int) -> Term:
        return terms[i if len(terms) > 1 else 0]

    def compute(self, value: Value) -> list[Term]:
        op = value.op
        if op == TIME:
            return [Term("t")]
        if op in (STATE, COTANGENT):
            return [Term(name) for name in self.code.parts("y" if op == STATE else "g")]
        if op in (SHARED, SAMPLE):
            return [self.leaf(op, value.data[0], i) for i in range(value.size)]
        if op == "const":
            return [self.number(value.data[0])]
        if op == "stop":
            return self.terms(value.args[0])
        if op == "gather":
            assert value.index is not None
            return self.gather(value.args[0], value.index)
        if op == "cat":
            return [term for arg in value.args for term in self.full(arg)]
        if op == "scatter":
            assert value.index is not None
            parts: list[list[Term]] = [[] for _ in range(value.size)]
            for term, at in zip(self.full(value.args[0]), value.index.tolist(), strict=True):
                if at >= 0:
                    parts[at].append(term)
            return [self.added(part) for part in parts]
        if op in ("sum", "amax"):
            outer, reduced, inner = value.data
            x = self.full(value.args[0])
            groups = [
                [x[(o * reduced + r) * inner + i] for r in range(reduced)] for o in range(outer) for i in range(inner)
            ]
            return [self.added(group) if op == "sum" else self.largest(group) for group in groups]
        if op == "matmul":
            return self.matmul(value)
        assert op in POINTWISE, op
        args = [self.terms(arg) for arg in value.args]
        if self.code.show:
            self.routine.body.add(f"# {op} ({value.size})")
        return [self.pointwise(op, [self.one(terms, i) for terms in args]) for i in range(value.size)]

    def full(self, value: Value) -> list[Term]:
        """Exactly as many terms as components."""
        terms = self.terms(value)
        return terms if len(terms) == value.size else terms * value.size

    def gather(self, x: Value, index: np.ndarray) -> list[Term]:
        if x.op in (SHARED, SAMPLE):
            return [self.leaf(x.op, x.data[0], i) if i >= 0 else self.number(0.0) for i in index.tolist()]
        terms = self.full(x)
        return [terms[i] if i >= 0 else self.number(0.0) for i in index.tolist()]

    def assign(self, text: str, vector: bool) -> Term:
        name = self.routine.name()
        self.routine.body.add(f"{name} = {text}")
        return Term(name, None, vector)

    def pointwise(self, op: str, args: list[Term]) -> Term:
        number = folded(op, [arg.number for arg in args])
        if number is not None:
            return self.number(number)
        if op in ("add", "sub") and args[1].number == 0.0:
            return args[0]
        if op == "add" and args[0].number == 0.0:
            return args[1]
        if op == "where" and args[0].number is not None:
            return args[1] if args[0].number else args[2]
        plain = takes_plain_numbers(op) and any(arg.number is None for arg in args)
        texts = [arg.text if arg.number is None or plain else self.typed(arg) for arg in args]
        return self.assign(expression(op, texts, self.code.kind), any(arg.vector for arg in args))

    def typed(self, term: Term) -> str:
        return f"tl.full((), {term.text}, {self.code.kind})"

    def added(self, terms: Sequence[Term]) -> Term:
        if not terms:
            return self.number(0.0)
        total = terms[0]
        for term in terms[1:]:
            total = self.pointwise("add", [total, term])
        return total

    def largest(self, terms: Sequence[Term]) -> Term:
        total = terms[0]
        for term in terms[1:]:
            total = self.pointwise("maximum", [total, term])
        return total

    def matmul(self, value: Value) -> list[Term]:
        m, k, n = value.data[:3]
        (a0, a1, a2), (b0, b1, b2) = value.data[3:6], value.data[6:9]
        a, b = self.full(value.args[0]), self.full(value.args[1])
        if self.code.show:
            self.routine.body.add(f"# {m}x{k} times {k}x{n}")
        return [
            self.dot([(a[a0 + i * a1 + r * a2], b[b0 + r * b1 + j * b2]) for r in range(k)])
            for i in range(m)
            for j in range(n)
        ]

    def dot(self, pairs: Sequence[tuple[Term, Term]]) -> Term:
        total: Term | None = None
        for x, y in pairs:
            if total is None:
                total = self.pointwise("mul", [x, y])
            else:
                total = self.pointwise("fma", [x, y, total])
        return self.number(0.0) if total is None else total

    def vector(self, term: Term) -> str:
        """The name of a term as a vector over samples."""
        if term.number is not None:
            return f"tl.full([{self.code.samples}], {term.text}, {self.code.kind})"
        return term.text if term.vector else f"{term.text} + tl.zeros([{self.code.samples}], {self.code.kind})"


class ScalarisedCode(Code):
    """See ``Code``."""

    show = True

    def parts(self, name: str) -> list[str]:
        return [f"{name}_{i}" for i in range(self.program.dim)]

    def wide(self, name: str) -> str:
        return name

    def address(self, row: str) -> list[str]:
        return [f"({row}) * {self.program.dim} + {i}" for i in range(self.program.dim)]

    def components(self) -> list[str]:
        return [str(i) for i in range(self.program.dim)]

    def mask(self, condition: str | None) -> str:
        return "" if condition is None else condition

    def sum_squares(self, parts: Sequence[str]) -> str:
        return " + ".join(f"({part}).to(tl.float64) * ({part}).to(tl.float64)" for part in parts)

    def finite(self, parts: Sequence[str]) -> str:
        return "(" + " & ".join(f'(tl.abs({part}) < float("inf"))' for part in parts) + ").to(tl.int32)"

    def zeros(self) -> str:
        return f"tl.zeros([{self.samples}], {self.kind})"

    def build_field(self, routine: Routine) -> list[str]:
        body = _Body(self, routine)
        for value in self.program.values():
            body.terms(value) if value.op not in (SHARED, SAMPLE) else None
        return [body.vector(term) for term in body.full(self.program.output)]

    def build_pull(self, routine: Routine) -> tuple[list[str], list[str]]:
        assert self.back is not None
        body = _Body(self, routine)
        for value in self.back.values():
            body.terms(value) if value.op not in (SHARED, SAMPLE) else None
        sums: dict[tuple[str, int, int], list[Term]] = {}
        for term in self.back.terms:
            for place, part in self.contributions(body, term):
                sums.setdefault((term.leaf.op, term.leaf.data[0], place), []).append(part)
        by_leaf: dict[tuple[str, int], list[int]] = {}
        for kind, leaf, place in sums:
            by_leaf.setdefault((kind, leaf), []).append(place)
        values = []
        for (kind, leaf), places in by_leaf.items():
            made = self.add_accumulator(kind, leaf, np.array(sorted(places), dtype=np.int64))
            for name, place in zip(self.accumulator_names(made), made.positions.tolist(), strict=True):
                values.append(body.pointwise("add", [Term(name), body.added(sums[kind, leaf, place])]).text)
        return [body.vector(term) for term in body.full(self.back.state)], values

    def contributions(self, body: _Body, term: Accumulation) -> list[tuple[int, Term]]:
        """(component of the leaf, what is added to it)."""
        value = body.full(term.value)
        if term.other is None:
            assert term.target is not None
            value = value if len(value) == len(term.target) else value * len(term.target)
            return list(zip(term.target.tolist(), value, strict=True))
        m, k, inner = term.sizes
        offset, s0, s1 = term.place
        (a0, a1, a2), (b0, b1, b2) = term.value_strides, term.other_strides
        other = body.full(term.other)
        return [
            (
                offset + i * s0 + j * s1,
                body.dot([(value[a0 + i * a1 + r * a2], other[b0 + j * b1 + r * b2]) for r in range(inner)]),
            )
            for i in range(m)
            for j in range(k)
        ]

    def accumulator_names(self, accumulator: Accumulator) -> list[str]:
        return [f"{accumulator.name}_{i}" for i in range(len(accumulator.positions))]

    def accumulator_start(self, accumulator: Accumulator) -> list[str]:
        return [self.zeros()] * len(accumulator.positions)

    def accumulator_places(self, accumulator: Accumulator) -> list[tuple[str, str, str]]:
        names = self.accumulator_names(accumulator)
        if accumulator.kind == SHARED:
            return [(f"tl.sum({name}, axis=0)", str(accumulator.offset + i), "") for i, name in enumerate(names)]
        size = self.program.sample[accumulator.leaf].size
        places = accumulator.positions.tolist()
        return [(name, f"sample * {size} + {i}", "valid") for name, i in zip(names, places, strict=True)]
