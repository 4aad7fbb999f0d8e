"""Random calls of ``odeint`` and ``odeint_adjoint`` against torchdiffeq's."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

import fastode
from tests.fuzz.failure import Failure

OPEN: frozenset[str] = frozenset()
"""Values of fields of ``Call`` with open faults, as ``name=value``; ``docs/reliability.md`` lists them."""

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("dopri5", "tsit5", "bosh3", "dopri8", "adaptive_heun", "fehlberg2")
METHODS = (*ADAPTIVE, *FIXED, "explicit_adams", "implicit_adams")
FUNCS = ("net", "net of time", "oscillator", "decay", "counter", "coupled", "constant", "pendulum")
TIMES = ("two", "five", "backward", "uneven", "far", "float32", "requires grad", "negative")
SHAPES = ((3, 2), (2,), (1, 2), (2, 3, 2), (17, 2), (0, 2))
OPTIONS = (
    "none",
    "step_size",
    "first_step",
    "max_step",
    "min_step",
    "step_t",
    "jump_t",
    "norm",
    "safety",
    "factors",
    "perturb",
    "cubic",
    "grid",
    "unknown",
    "dtype",
)


@dataclass(frozen=True)
class Call:
    """One call; the defaults are what reduction tries."""

    func: str = "decay"
    method: str = "dopri5"
    times: str = "two"
    shape: tuple[int, ...] = (3, 2)
    options: str = "none"
    rtol: float = 1e-7
    parts: int = 1
    dtype: str = "float64"
    adjoint: bool = False
    gradient: bool = False
    event: bool = False
    fault: str = "none"
    seed: int = 0

    @property
    def kinds(self) -> frozenset[str]:
        """What is not as in the simplest call."""
        return frozenset(f"{k}={v}" for k, v in vars(self).items() if k != "seed" and v != getattr(Call, k)) | {"call"}

    def simpler(self) -> Iterator[Call]:
        """Neighbours that are simpler."""
        for name in vars(self):
            if getattr(self, name) != getattr(Call, name):
                yield replace(self, **{name: getattr(Call, name)})


def random_spec(rng: random.Random, without: frozenset[str] = frozenset()) -> Call:
    """A call."""
    method = rng.choice(METHODS)
    return Call(
        rng.choice(FUNCS),
        method,
        rng.choice(TIMES),
        rng.choice(SHAPES),
        rng.choice(OPTIONS) if rng.random() < 0.6 else "none",
        rng.choice([1e-3, 1e-5, 1e-7, 1e-9]),
        rng.choice([1, 1, 1, 2, 3]),
        rng.choice(["float64", "float64", "float64", "float32", "complex128"]),
        rng.random() < 0.4,
        rng.random() < 0.6,
        rng.random() < 0.08,
        rng.choice(["method", "times", "integers", "tuple", "shape", "rtol shape"]) if rng.random() < 0.08 else "none",
        rng.randrange(1000),
    )


class Func(nn.Module):
    """Right-hand sides that treat rows alike, or mix them (``coupled``)."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0
        rng = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(0.5 * torch.randn(2, 2, generator=rng, dtype=torch.float64).to(dtype))
        self.v = nn.Parameter(torch.randn(2, generator=rng, dtype=torch.float64).to(dtype))

    def one(self, t: Tensor, y: Tensor) -> Tensor:
        kind = self.kind
        if kind == "net":
            return torch.tanh(y @ self.w + self.v)
        if kind == "net of time":
            return torch.sin(y @ self.w + self.v * t)
        if kind == "oscillator":
            return torch.stack([y[..., 1], -(1 + self.v[0] ** 2) * y[..., 0]], -1)
        if kind == "pendulum":
            return torch.stack([y[..., 1], -torch.sin(y[..., 0]) + self.v[0] * torch.cos(t)], -1)
        if kind == "coupled":
            return self.w[0] * y - y.mean()
        if kind == "constant":
            return self.v.expand(y.shape)
        if kind == "counter":
            self.calls += 1
        return -y * self.v.abs() + 0.1 * y**2

    def forward(self, t: Tensor, y: Any) -> Any:
        if isinstance(y, tuple):
            return tuple(self.one(t, x) for x in y)
        return self.one(t, y)


def _times(call: Call) -> Tensor:
    t = {
        "two": [0.0, 1.0],
        "five": [0.0, 0.25, 0.5, 0.75, 1.0],
        "backward": [1.0, 0.6, 0.1],
        "uneven": [0.0, 0.01, 0.4, 0.401, 1.3],
        "far": [1e6, 1e6 + 0.5, 1e6 + 1.0],
        "float32": [0.0, 0.3, 1.0],
        "requires grad": [0.1, 0.5, 0.9],
        "negative": [-1.0, -0.5, 0.25],
    }[call.times]
    real = torch.float32 if "float32" in (call.times, call.dtype) else torch.float64
    return torch.tensor(t, dtype=real, requires_grad=call.times == "requires grad" and call.gradient)


def _options(call: Call, t: Tensor) -> dict[str, Any] | None:
    middle = float(t[0] + 0.4 * (t[-1] - t[0]))
    shaped = torch.tensor([middle], dtype=torch.float64)
    found: dict[str, dict[str, Any] | None] = {
        "none": None,
        "step_size": {"step_size": 0.05},
        "first_step": {"first_step": 0.01},
        "max_step": {"max_step": 0.1},
        "min_step": {"min_step": 1e-4},
        "step_t": {"step_t": shaped},
        "jump_t": {"jump_t": shaped},
        "norm": {"norm": lambda x: x.abs().max()},
        "safety": {"safety": 0.7},
        "factors": {"ifactor": 4.0, "dfactor": 0.3},
        "perturb": {"perturb": True, "step_size": 0.1},
        "cubic": {"interp": "cubic", "step_size": 0.1},
        "grid": {"grid_constructor": lambda func, y0, t: torch.linspace(float(t[0]), float(t[-1]), 9, dtype=t.dtype)},
        "unknown": {"no_such_option": 1},
        "dtype": {"dtype": torch.float64},
    }
    return found[call.options]


@dataclass
class Outcome:
    """What came out, or what was raised."""

    values: list[Tensor]
    grads: list[Tensor | None]
    error: Exception | None = None
    warned: tuple[str, ...] = ()


def _run(library: Any, call: Call, options: dict[str, Any] | None, tight: bool = False) -> Outcome:
    dtype = getattr(torch, call.dtype)
    dtype = {torch.float32: torch.float64}.get(dtype, dtype) if tight else dtype
    func = Func(call.func, dtype)
    rng = torch.Generator().manual_seed(call.seed)
    start = [torch.randn(*call.shape, generator=rng, dtype=torch.float64).to(dtype) for _ in range(call.parts)]
    start = [y.requires_grad_(call.gradient) for y in start]
    t = (
        _times(call)
        .detach()
        .to(torch.float64 if tight else _times(call).dtype)
        .requires_grad_(_times(call).requires_grad)
    )
    y0: Any = start[0] if call.parts == 1 else tuple(start)
    method: Any = "dopri8" if tight else call.method
    rtol: Any = max(1e-11, 1e-3 * call.rtol) if tight else call.rtol
    if call.fault == "method":
        method = "no_such_method"
    if call.fault == "times":
        t = t.detach().flip(0)[[0, 0, -1]]
    if call.fault == "integers":
        y0 = torch.ones(2, 2, dtype=torch.long)
    if call.fault == "tuple":
        y0 = [torch.ones(2, 2)]
    if call.fault == "shape":
        t = t.detach()[None]
    if call.fault == "rtol shape":
        rtol = torch.full((5, 7), 1e-5)
    keywords: dict[str, Any] = {"rtol": rtol, "atol": rtol * 0.1, "method": method, "options": options}
    if call.event:
        keywords["event_fn"] = lambda t, y: (
            (y[0] if isinstance(y, tuple) else y).real.sum() - 1.0 - 3.0 * (t - t.new_tensor(0.0))
        )
    run = library.odeint_adjoint if call.adjoint and not tight else library.odeint
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = run(func, y0, t, **keywords)
            values = [found[0], *_listed(found[1])] if call.event else _listed(found)
            grads: list[Tensor | None] = []
            if call.gradient:
                wanted = [*start, *func.parameters(), *([t] if t.requires_grad else [])]
                loss = sum((x.real.sin().sum() + (x.imag.sum() if x.is_complex() else 0.0)) for x in values)
                grads = list(torch.autograd.grad(loss, wanted, allow_unused=True))
        except Exception as error:
            return Outcome([], [], error)
        finally:
            torch.set_warn_always(always)
    said = {w.category.__name__ for w in heard if not _is_own(w)}
    return Outcome([x.detach() for x in values], grads, None, tuple(sorted(said)))


def _is_own(warning: warnings.WarningMessage) -> bool:
    """A warning that only one of the libraries has to give: ours of speed, torch's at casts within torchdiffeq."""
    return warning.category.__name__ == "PerformanceWarning" or "Casting complex values" in str(warning.message)


def _listed(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, tuple) else [found]


def check(call: Call) -> str | None:
    """Compares a call with torchdiffeq's, and where the steps are not the same with a tight solve.

    Raises:
        Failure: they differ.
    """
    torch.manual_seed(0)
    options = _options(call, _times(call).detach())
    # of fixed steps the gradient is that of the steps, which torchdiffeq has in odeint
    exact = replace(call, adjoint=False) if call.adjoint and call.method in FIXED else call
    theirs = _run(torchdiffeq, exact, options)
    ours = _run(fastode, call, options)
    if theirs.error is not None:
        if ours.error is None:
            # what torchdiffeq cannot do may work; what is wrong must be refused
            if call.fault != "none":
                raise Failure("exception", f"torchdiffeq raises {theirs.error!r}, nothing was raised")
            return f"torchdiffeq raises {theirs.error!r}"
        more = {"integers": (TypeError,), "rtol shape": (ValueError,)}  # more to the point than what torch raises
        known = (type(theirs.error), *more.get(call.fault, ()))
        if call.fault != "none" and not isinstance(ours.error, known):
            raise Failure("exception", f"torchdiffeq raises {theirs.error!r}, this {ours.error!r}")
        return "both raise"
    if ours.error is not None:
        raise Failure("exception", f"{type(ours.error).__name__}: {ours.error}") from ours.error
    if set(theirs.warned) != set(ours.warned):
        raise Failure("warning", f"torchdiffeq warns {theirs.warned}, this {ours.warned}")
    truth = None
    if call.method not in FIXED and not call.event and call.fault == "none":
        truth = _run(torchdiffeq, replace(call, options="none"), None, tight=True)
        if truth.error is not None:
            return f"no truth: {truth.error!r}"
    for what, got, their, true in (
        ("values", ours.values, theirs.values, truth and truth.values),
        ("gradients", ours.grads, theirs.grads, truth and truth.grads),
    ):
        for i, g in enumerate(got):
            _near(call, f"{what} {i}", what, g, their[i], true[i] if true else None)
    return None


def _near(call: Call, name: str, kind: str, got: Tensor | None, their: Tensor | None, true: Tensor | None) -> None:
    if got is None and their is None:
        return
    shape = got if got is not None else their
    assert shape is not None
    got = torch.zeros_like(shape) if got is None else got
    their = torch.zeros_like(shape) if their is None else their
    if got.shape != their.shape or got.dtype != their.dtype:
        raise Failure(kind, f"{name}: {tuple(got.shape)} {got.dtype} instead of {tuple(their.shape)} {their.dtype}")
    if not got.numel():
        return
    if not torch.isfinite(torch.view_as_real(their) if their.is_complex() else their).all():
        return
    wide = torch.complex128 if got.is_complex() else torch.float64
    right = (their if true is None else true).to(wide)
    size = float(right.abs().max()) + 1e-3
    error, theirs = float((got.to(wide) - right).abs().max()), float((their.to(wide) - right).abs().max())
    precise = 1e-8 if call.dtype != "float32" and call.times != "float32" else 1e-4
    if true is None:  # the same steps; a time that is found has the tolerance of its search
        bound = (precise if not call.event else max(precise, 10 * call.rtol)) * size
    else:
        # far times have a resolution of their own in torchdiffeq
        bound = max(20 * theirs, (200 if kind == "values" else 1000) * call.rtol * size, precise * size)
    if not error <= bound:
        raise Failure(
            kind,
            f"{name}: error {error:.3g}, torchdiffeq's {theirs:.3g}, allowed {bound:.3g}\n"
            f"got   {got.flatten()[:6].tolist()}\nright {right.flatten()[:6].tolist()}",
        )


def script(call: Call) -> str:
    """A program that shows a failure, from the root of the project."""
    return f"from tests.fuzz.calls import Call, check\n\ncheck({call!r})\n"
