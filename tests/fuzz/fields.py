"""Random fields, solved by the engine and by a plain loop in torch."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastode
from tests.fuzz.changes import BUFFERS
from tests.fuzz.effects import CACHES, SIDE_EFFECTS
from tests.fuzz.failure import Failure
from tests.fuzz.feature import Feature
from tests.fuzz.hooks import GRADIENTS, HOOKS
from tests.fuzz.layers import operations
from tests.fuzz.places import features_of_places
from tests.fuzz.text import ENDINGS, STYLES, Made, Shape, Source, source

_PARTS = (operations(), features_of_places(), [*SIDE_EFFECTS, *CACHES, *HOOKS, *GRADIENTS, *BUFFERS])
CATALOGUE: dict[str, Feature] = {f.name: f for part in _PARTS for f in part}
_GROUPS = [[f.name for f in part] for part in _PARTS]

END = 0.8
CLASSIC = ([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])
THREE_EIGHTHS = ([[], [1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8])


@dataclass(frozen=True)
class Spec:
    """A field and how it is solved; the first of the values in ``SIMPLEST`` are what reduction tries.

    Attributes:
        features: names in ``CATALOGUE``.
        order: which change is made between which solves, indices into the field's changes.
        style, state, batch, size, ending: of the text.
        api: ``solve``, ``odeint`` or ``odeint_adjoint``.
        steps: number of Runge-Kutta steps.
        mode: ``values`` (without gradient, effects compared) or ``gradients``.
        magnitude: of the states.
        seed: of the states.
        dtype: ``float64`` or ``float32``.
    """

    features: tuple[str, ...]
    order: tuple[int, ...] = ()
    style: str = "module"
    state: str = "tensor"
    batch: int = 3
    size: int = 2
    api: str = "solve"
    steps: int = 1
    mode: str = "values"
    magnitude: float = 0.5
    seed: int = 0
    dtype: str = "float64"
    ending: str = "fresh"

    @property
    def kinds(self) -> frozenset[str]:
        """What it has in it, for recognising a fault that is known already."""
        return frozenset((*self.features, self.ending)) - {"fresh"}

    def simpler(self) -> Iterator[Spec]:
        """Neighbours that are simpler, the simplest first."""
        for i in range(len(self.features)):
            for order in ((), self.order) if self.order else ((),):
                yield replace(self, features=self.features[:i] + self.features[i + 1 :], order=order)
        for i in range(len(self.order)):
            yield replace(self, order=self.order[:i] + self.order[i + 1 :])
        plain = Spec(())
        for name in ("ending", "style", "state", "api", "mode", "steps", "size", "batch", "magnitude", "dtype", "seed"):
            if getattr(self, name) != getattr(plain, name):
                yield replace(self, **{name: getattr(plain, name)})
        for k in sorted(set(self.order)):  # the changes of fewer features have lower numbers
            if k:
                yield replace(self, order=tuple(k - 1 if x == k else x for x in self.order))


def random_spec(rng: random.Random, without: frozenset[str] = frozenset()) -> Spec:
    """A field with one to five features."""
    chosen: list[Feature] = []
    for _ in range(rng.choice([1, 2, 2, 3, 3, 4, 5])):
        name = rng.choice(rng.choices(_GROUPS, weights=[3, 2, 3])[0])
        if name not in without:
            chosen.append(CATALOGUE[name])
    changes = sum(len(f.changes) for f in chosen)
    changes = changes if all(f.pure for f in chosen) else 0
    order = tuple(rng.randrange(changes) for _ in range(rng.randint(1, 3))) if changes and rng.random() < 0.8 else ()
    with_controls = any(f.controls for f in chosen)
    api = "solve" if with_controls else rng.choice(["solve", "solve", "odeint", "odeint_adjoint"])
    mode = "gradients" if all(f.pure for f in chosen) and rng.random() < 0.6 else "values"
    size = rng.choice([1, 2, 2, 3, 4])
    endings = [e for e in ENDINGS if e != "one buffer" or mode == "values"]
    return Spec(
        tuple(f.name for f in chosen),
        order,
        rng.choice(STYLES),
        rng.choice(
            [
                "tensor",
                "tensor",
                "tensor",
                *(["tuple"] if size > 1 else []),
                *(["dict"] if size > 1 and api == "solve" else []),
            ]
        ),
        rng.choice([1, 2, 3, 3, 5, 17, 33]),
        size,
        api,
        rng.choice([1, 2, 4]),
        mode,
        rng.choice([0.1, 0.5, 0.5, 2.0, 20.0]),
        rng.randrange(1000),
        rng.choice(["float64"] * 5 + ["float32"]),
        rng.choice(["fresh", "fresh", "fresh", *(e for e in endings if e not in without)]),
    )


def alone(without: frozenset[str]) -> Iterator[Spec]:
    """Every feature by itself, in several styles, with each of its changes."""
    for style, mode, steps, dtype in (
        ("module", "values", 2, "float64"),
        ("module", "gradients", 2, "float64"),
        ("closure", "gradients", 1, "float64"),
        ("closure", "values", 1, "float32"),
    ):
        for name, feature in CATALOGUE.items():
            order = tuple(range(len(feature.changes))) if feature.pure else ()
            if name not in without and (feature.pure or mode == "values"):
                yield Spec((name,), order, style, mode=mode, steps=steps, dtype=dtype)


def text_of(spec: Spec) -> str:
    """The source of a field."""
    features = [CATALOGUE[name] for name in spec.features]
    controls = any(f.controls for f in features)
    return source(features, Shape(spec.batch, spec.size, spec.style, spec.state, controls, spec.ending))


def check(spec: Spec) -> str | None:
    """Compares every backend with a plain loop.

    Returns:
        Why the case says nothing, None if it was compared.

    Raises:
        Failure: a difference, an exception, or a warning.
    """
    if spec.order and not all(CATALOGUE[name].pure for name in spec.features):
        return "a solve may call once more at its end, which the next would see"
    if any(k >= sum(len(CATALOGUE[name].changes) for name in spec.features) for k in spec.order):
        return "no such change"
    if (spec.state != "tensor" and spec.size < 2) or (spec.state == "dict" and spec.api != "solve"):
        return "no such state"
    if spec.ending == "one buffer" and spec.mode == "gradients":
        return "no such ending"
    if any(CATALOGUE[name].controls for name in spec.features) and spec.api != "solve":
        return "no controls there"
    dtype = getattr(torch, spec.dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with Source(text_of(spec)) as text, _no_globals_left():
            return _compare(spec, text)
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _no_globals_left() -> Iterator[None]:
    """Hooks of all modules that a case has registered are removed."""
    kept = {
        k: dict(v) for k, v in vars(torch.nn.modules.module).items() if k.startswith("_global_") and isinstance(v, dict)
    }
    try:
        yield
    finally:
        for name, hooks in kept.items():
            now = vars(torch.nn.modules.module)[name]
            now.clear()
            now.update(hooks)


def _compare(spec: Spec, text: Source) -> str | None:
    try:
        right = list(_phases(spec, text.make(), functools.partial(_loop, spec), functools.partial(_at_end, spec)))
    except Exception as error:  # the text itself is at fault
        return f"torch: {type(error).__name__}: {str(error)[:200]}"
    if not all(torch.isfinite(x).all() for phase in right for x in phase.tensors()):
        return "not finite"
    ways = (
        {"auto": {}, "stepped": {"backend": "stepped"}, "reference": {"backend": "reference"}}
        if spec.api == "solve"
        else {"auto": {}}
    )
    for name, options in ways.items():
        made = text.make()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            phases = _phases(spec, made, functools.partial(_engine, spec, options))
            for number, expected in enumerate(right):
                try:
                    got = next(phases)
                except Exception as error:
                    raise Failure(
                        "exception", f"{name}, solve {number}: {type(error).__name__}: {str(error)[:600]}"
                    ) from error
                if name == "reference":  # looks at single rows first, and so calls more often
                    if not all(CATALOGUE[f].pure for f in spec.features):
                        continue
                    got.effects = []
                try:
                    _same(spec, f"{name}, solve {number}", got, expected)
                except Failure as failure:
                    if failure.kind in ("values", "gradients") and _is_rounding(spec, text, number, got, expected):
                        return "rounding is amplified"
                    raise
        for warning in heard:
            if warning.category.__name__ != "PerformanceWarning" and "fuzz" not in str(warning.filename):
                said = str(warning.message)
                if not _heard_anyway(said):
                    raise Failure("warning", f"{name}: {warning.category.__name__}: {said[:400]}")
    return None


def _is_rounding(spec: Spec, text: Source, number: int, got: Phase, right: Phase) -> bool:
    """Whether states that differ by some roundings give results that differ as much as these."""
    if not all(CATALOGUE[name].pure for name in spec.features):
        return False
    eps = 64 * torch.finfo(getattr(torch, spec.dtype)).eps
    for sign in (1, -1):
        moved = list(_phases(spec, text.make(), functools.partial(_loop, spec), factor=1 + sign * eps))[number]
        pairs = zip(got.tensors(), right.tensors(), moved.tensors(), strict=False)
        if all(_at_most(x, r, 4 * float((m - r).abs().max())) for x, r, m in pairs if r.numel()):
            return True
    return False


def _at_most(x: Tensor, right: Tensor, bound: float) -> bool:
    return x.shape == right.shape and float((x - right).abs().max()) <= bound


def _heard_anyway(said: str) -> bool:
    """torch's own advice on what the text does."""
    return any(part in said for part in ("weight_norm", "Converting a tensor", "lr_scheduler", "non-writable"))


@dataclass
class Phase:
    """What came out between two changes.

    Attributes:
        ys: the end, (B, D).
        grads: by y0, controls and parameters.
        effects: what the field's calls left behind, of the first solve; of the loop, also after one call at the end.
    """

    ys: Tensor
    grads: list[Tensor | None]
    effects: list[dict[str, Any]]

    def tensors(self) -> list[Tensor]:
        return [self.ys, *[g for g in self.grads if g is not None]]


_Run = Callable[[Made, Any, Any], Any]


def _phases(spec: Spec, made: Made, run: _Run, run_once: _Run | None = None, factor: float = 1.0) -> Iterator[Phase]:
    rng = torch.Generator().manual_seed(spec.seed)
    base = factor * spec.magnitude * torch.randn(spec.batch, spec.size, generator=rng, dtype=torch.float64)
    control = torch.randn(spec.batch, spec.size, generator=rng, dtype=torch.float64)
    weights = torch.randn(spec.batch, spec.size, generator=rng, dtype=torch.float64)
    base, control, weights = (x.to(torch.get_default_dtype()) for x in (base, control, weights))
    with_controls = any(CATALOGUE[name].controls for name in spec.features)
    for number in range(len(spec.order) + 1):
        if number:
            made.changes[spec.order[number - 1]]()
        grads: list[Tensor | None] = []
        if spec.mode == "gradients":
            y0, c = base.clone().requires_grad_(), control.clone().requires_grad_() if with_controls else None
            wanted = [x for x in (y0, c, *made.params()) if x is not None and x.requires_grad]
            _seed(spec)
            end = run(made, y0, c)
            if end.requires_grad:
                grads = list(torch.autograd.grad((end * weights).sum(), wanted, allow_unused=True))
        _seed(spec)
        with torch.no_grad():
            ys = run(made, base.clone(), control.clone() if with_controls else None)
            effects = [copy.deepcopy(made.effects())] if spec.mode == "values" and not number else []
            if effects and effects[0] and run_once is not None:
                run_once(made, ys.clone(), control.clone() if with_controls else None)
                effects.append(copy.deepcopy(made.effects()))
        yield Phase(ys.detach().clone(), grads, effects)


def _seed(spec: Spec) -> None:
    torch.manual_seed(spec.seed)
    random.seed(spec.seed)
    np.random.seed(spec.seed)  # noqa: NPY002, the generator that fields use


def _state(spec: Spec, y: Tensor) -> Any:
    if spec.state == "tuple":
        return y[:, :1], y[:, 1:]
    return {"a": y[:, :1], "b": y[:, 1:]} if spec.state == "dict" else y


def _joined(spec: Spec, state: Any) -> Tensor:
    if spec.state == "tuple":
        return torch.cat(state, -1)
    return torch.cat([state["a"], state["b"]], -1) if spec.state == "dict" else state


def _engine(spec: Spec, options: dict[str, Any], made: Made, y0: Tensor, c: Tensor | None) -> Tensor:
    if spec.api == "solve":
        sol = fastode.solve(
            made.field,
            _state(spec, y0),
            [0.0, END],
            controls=c,
            method="rk4_classic",
            step_size=END / spec.steps,
            **options,
        )
        return _joined(
            spec, fastode.solution.tree_map(lambda x: x[-1], sol.ys) if spec.state != "tensor" else sol.ys[-1]
        )
    run = getattr(fastode, spec.api)
    more = {}
    if spec.api == "odeint_adjoint":
        params = [p for p in made.params() if p.requires_grad]
        more = {"adjoint_params": tuple(params)}
    t = torch.tensor([0.0, END])
    ys = run(made.field, _state(spec, y0), t, method="rk4", options={"step_size": END / spec.steps}, **more)
    return _joined(spec, tuple(y[-1] for y in ys) if spec.state == "tuple" else ys[-1])


def _loop(spec: Spec, made: Made, y: Tensor, c: Tensor | None) -> Tensor:
    a, b = CLASSIC if spec.api == "solve" else THREE_EIGHTHS
    h, extra = END / spec.steps, () if c is None else (c,)
    for n in range(spec.steps):
        ks: list[Tensor] = []
        for row in a:
            s = (n + sum(row)) * h
            t = torch.full((spec.batch, 1), s) if spec.api == "solve" else torch.tensor(s)
            stage = y
            for weight, k in zip(row, ks, strict=True):
                stage = stage + h * weight * k if weight else stage
            ks.append(_joined(spec, made.field(t, _state(spec, stage), *extra)).clone())
        for weight, k in zip(b, ks, strict=True):
            y = y + h * weight * k
    return y


def _at_end(spec: Spec, made: Made, y: Tensor, c: Tensor | None) -> Tensor:
    t = torch.full((spec.batch, 1), END) if spec.api == "solve" else torch.tensor(END)
    return _joined(spec, made.field(t, _state(spec, y), *(() if c is None else (c,))))


def _same(spec: Spec, where: str, got: Phase, right: Phase) -> None:
    loose = 1e-9 if spec.dtype == "float64" else 2e-4
    _near(f"values, {where}", got.ys, right.ys, loose)
    if right.grads and not got.grads:
        raise Failure("gradients", f"{where}: the result has no gradient")
    scale = max((float(g.abs().max()) for g in right.grads if g is not None and g.numel()), default=1.0)
    for i, (g, r) in enumerate(zip(got.grads, right.grads, strict=False)):
        if g is None and r is None:
            continue
        shape = g if g is not None else r
        assert shape is not None
        zero = torch.zeros_like(shape)
        _near(f"gradients {i}, {where}", zero if g is None else g, zero if r is None else r, loose, scale)
    for found in got.effects:
        if not any(_equal(found, value, loose) for value in right.effects):
            wrong = {name: found[name] for name in found if not _equal(found[name], right.effects[0][name], loose)}
            own = {name: right.effects[0][name] for name in wrong}
            raise Failure("effects", f"{where}: got {wrong!r:.300}, own calls leave {own!r:.300}")


def _near(what: str, got: Tensor, right: Tensor, loose: float, scale: float = 0.0) -> None:
    if type(got) is not Tensor:
        raise Failure("values", f"{what}: a {type(got)}")
    if got.shape != right.shape:
        raise Failure("values", f"{what}: shape {tuple(got.shape)} instead of {tuple(right.shape)}")
    size = max(scale, float(right.abs().max()) if right.numel() else 0.0, 1e-3)
    error = float((got - right).abs().max()) if right.numel() else 0.0
    if not error <= loose * size:
        kind = what.split(",")[0].split()[0]
        raise Failure(
            kind, f"{what}: error {error:.3g}\ngot   {got.flatten()[:6].tolist()}\nright {right.flatten()[:6].tolist()}"
        )


def _equal(a: Any, b: Any, loose: float) -> bool:
    if isinstance(b, Tensor):
        if not isinstance(a, Tensor) or a.shape != b.shape:
            return False
        return bool(torch.isclose(a.double(), b.double(), rtol=loose, atol=loose).all())
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.shape == b.shape and bool(np.allclose(a, b, rtol=loose))
    if isinstance(b, (list, tuple, collections.deque)):
        return len(a) == len(b) and all(_equal(x, y, loose) for x, y in zip(a, b, strict=True))
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], v, loose) for k, v in b.items())
    if isinstance(b, float):
        return isinstance(a, (int, float)) and abs(a - b) <= loose * (1 + abs(b))
    return bool(a == b)
