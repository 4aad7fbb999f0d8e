"""Random calls of ``solve``: backends against each other and against a tight solve in float64."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fastode
from tests.fuzz.failure import Failure

OPEN: frozenset[str] = frozenset()
"""Values of fields of ``Solve`` with open faults, as ``name=value``; ``docs/reliability.md`` lists them."""

EXPLICIT = ("dopri5", "tsit5", "bosh3", "dopri8", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "rk4_classic")
IMPLICIT = ("kvaerno3", "kvaerno5", "rodas5p")
TIMES = ("two", "five", "backward", "per sample", "repeated", "far", "empty for one", "tensor32")
FIELDS = ("net", "lorenz", "decay", "time", "stiff one", "explodes one", "kinks")
GRADIENTS = ("none", "checkpoint", "every 2", "every 7", "bytes", "backprop", "adjoint")


@dataclass(frozen=True)
class Solve:
    """One solve; the defaults are what reduction tries."""

    field: str = "decay"
    method: str = "dopri5"
    times: str = "two"
    batch: int = 3
    rtol: float = 1e-5
    tolerance: str = "number"
    controller: str = "I"
    gradient: str = "none"
    dense: bool = False
    event: str = "none"
    step_size: str = "none"
    dtype: str = "float64"
    max_steps: int = 100_000
    seed: int = 0

    @property
    def kinds(self) -> frozenset[str]:
        """What is not as in the simplest solve."""
        return frozenset(f"{k}={v}" for k, v in vars(self).items() if k != "seed" and v != getattr(Solve, k)) | {
            "solve"
        }

    def simpler(self) -> Iterator[Solve]:
        """Neighbours that are simpler."""
        for name in vars(self):
            if getattr(self, name) != getattr(Solve, name):
                yield replace(self, **{name: getattr(Solve, name)})


def random_spec(rng: random.Random, without: frozenset[str] = frozenset()) -> Solve:
    """A solve."""
    method = rng.choice(rng.choices([EXPLICIT, FIXED, IMPLICIT], [5, 2, 1])[0])
    dtype = rng.choice(["float64", "float64", "float32"])
    # methods of low order take too many steps, and float32 has no more digits
    loose = method in ("fehlberg2", "adaptive_heun", "bosh3", "kvaerno3") or dtype == "float32"
    return Solve(
        rng.choice(FIELDS),
        method,
        rng.choice(TIMES),
        rng.choice([1, 2, 3, 5, 15, 16, 17, 40]),
        rng.choice([1e-3, 1e-4] if loose else [1e-3, 1e-5, 1e-5, 1e-7]),
        rng.choice(["number", "number", "per component", "tiny atol"]),
        rng.choice(["I", "PI", "PID"]),
        rng.choice(GRADIENTS),
        rng.random() < 0.25,
        rng.choice(["none", "none", "none", "terminal", "record", "reset"]),
        rng.choice(["none", "none", "number", "per sample"]) if method in (*FIXED, *EXPLICIT) else "none",
        dtype,
        rng.choice([100_000, 100_000, 100_000, 20]),
        rng.randrange(1000),
    )


class _Field:
    """Rates as controls, weights as an attribute."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        self.kind = kind
        rng = torch.Generator().manual_seed(7)
        self.w = (0.5 * torch.randn(3, 3, generator=rng, dtype=torch.float64)).to(dtype).requires_grad_()

    def __call__(self, t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        a, b, z = y.unbind(1)
        if self.kind == "net":
            return torch.tanh(y @ self.w + c)
        if self.kind == "lorenz":
            return 0.1 * torch.stack([10 * (b - a), a * (8 + c[:, 0] - z) - b, a * b - 8 / 3 * z], 1)
        if self.kind == "time":
            return torch.cos(3 * t) * c - y @ self.w.abs() * 0.2
        if self.kind == "stiff one":
            return -(1.0 + 200.0 * (c[:, :1] > 1.2)) * (y - torch.cos(t)) + 0.1 * self.w[0]
        if self.kind == "explodes one":
            return y * y * (c[:, :1] > 0.8) * 3 - 0.2 * y + 0.1 * self.w[0]
        if self.kind == "kinks":
            return torch.relu(y @ self.w) - 0.5 * y.abs() + 0.1 * c
        return -(0.5 + c.abs()) * y + 0.1 * self.w[0]


def _times(spec: Solve) -> Any:
    rng = torch.Generator().manual_seed(spec.seed + 1)
    ends = 0.3 + torch.rand(spec.batch, generator=rng, dtype=torch.float64)
    if spec.times == "per sample":
        return torch.linspace(0, 1, 4, dtype=torch.float64)[:, None] * ends
    if spec.times == "empty for one":
        t = torch.linspace(0, 1, 3, dtype=torch.float64)[:, None] * ends
        t[:, 0] = 0.25
        return t
    found = {
        "two": [0.0, 1.0],
        "five": [0.0, 0.2, 0.45, 0.5, 1.0],
        "backward": [0.8, 0.3, 0.0],
        "repeated": [0.0, 0.0, 0.5, 0.5, 1.0],
        "far": [1e6, 1e6 + 0.5, 1e6 + 1],
        "tensor32": torch.tensor([0.0, 0.1, 0.7]),
    }
    return found[spec.times]


def _call(spec: Solve, backend: str, dtype: torch.dtype, **more: Any) -> tuple[fastode.Solution, list[Tensor | None]]:
    rng = torch.Generator().manual_seed(spec.seed)
    y0 = torch.randn(spec.batch, 3, generator=rng, dtype=torch.float64).to(dtype)
    c = torch.randn(spec.batch, 3, generator=rng, dtype=torch.float64).to(dtype)
    weights = torch.randn(spec.batch, 3, generator=rng, dtype=torch.float64).to(dtype)
    field = _Field(spec.field, dtype)
    atol: Any = 0.1 * spec.rtol
    if spec.tolerance == "per component":
        atol = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64) * spec.rtol
    if spec.tolerance == "tiny atol":
        atol = 1e-9 * spec.rtol
    keywords: dict[str, Any] = {"method": spec.method, "rtol": spec.rtol, "atol": atol, "backend": backend}
    adaptive = spec.step_size == "none" and spec.method not in FIXED
    keywords["controller"] = {"I": None, "PI": fastode.PIController(), "PID": fastode.PIDController(0.2, 0.4, 0.0)}[
        spec.controller if adaptive else "I"
    ]
    if spec.step_size == "number" or (spec.step_size == "none" and spec.method in FIXED):
        keywords["step_size"] = 0.05
    if spec.step_size == "per sample":
        keywords["step_size"] = torch.linspace(0.03, 0.11, spec.batch, dtype=torch.float64)
    if spec.gradient != "none":
        y0, c = y0.requires_grad_(), c.requires_grad_()
        keywords["gradient"] = {
            "every 2": fastode.Checkpoint(every=2),
            "every 7": fastode.Checkpoint(every=7),
            "bytes": fastode.Checkpoint(max_bytes=2000),
        }.get(spec.gradient, spec.gradient)
    if spec.event != "none":
        reset = (lambda t, y: -0.5 * y) if spec.event == "reset" else None
        count = 1 if spec.event == "terminal" else 3
        terminal = {"max_count": count} if spec.event != "record" else {"terminal": False}
        keywords["events"] = [_event(lambda t, y: y[:, 0] - 0.2, reset, terminal)]
    keywords |= {"dense": spec.dense, "max_steps": spec.max_steps, "on_failure": "nan"} | more
    t = _times(spec)
    with torch.set_grad_enabled(spec.gradient != "none"):
        sol = fastode.solve(field, y0, t, controls=c, **keywords)
    grads: list[Tensor | None] = []
    if spec.gradient != "none":
        healthy = (sol.status == 0).to(dtype)[:, None]
        loss = (torch.nan_to_num(sol.ys) * weights * healthy).sum()
        grads = list(torch.autograd.grad(loss, [y0, c, field.w], allow_unused=True))
    return sol, grads


def _event(fn: Any, reset: Any, more: dict[str, Any]) -> fastode.Event:
    return fastode.Event(fn, reset=reset, **more) if reset is not None else fastode.Event(fn, **more)


def _backends(spec: Solve) -> tuple[str, ...]:
    if spec.method in IMPLICIT:
        return ("auto",)
    if spec.gradient == "backprop":
        return ("reference",)
    return ("auto", "cpu", "stepped", *(["reference"] if spec.seed % 3 == 0 else []))  # the reference is slow


def check(spec: Solve) -> str | None:
    """Compares statuses, states and gradients of all backends, and the states with a tight solve.

    Raises:
        Failure: they differ.
    """
    torch.manual_seed(0)
    dtype = getattr(torch, spec.dtype)
    first = None
    for backend in _backends(spec):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                sol, grads = _call(spec, backend, dtype)
            except (ValueError, RuntimeError) as error:
                if first is None and _refused(spec, error):
                    return f"refused: {error}"
                if backend == "cpu" and "cannot run this solve" in str(error):
                    continue  # says why
                raise Failure("exception", f"{backend}: {type(error).__name__}: {error}") from error
            except Exception as error:
                raise Failure("exception", f"{backend}: {type(error).__name__}: {error}") from error
        loud = [w for w in heard if w.category.__name__ != "PerformanceWarning"]
        if loud:
            raise Failure("warning", f"{backend}: {loud[0].message}")
        if first is None:
            first = backend, sol, grads
            _against_truth(spec, backend, sol)
            _against_dense(spec, backend, sol)
        else:
            _agree(spec, backend, sol, grads, *first)
    return None


def _refused(spec: Solve, error: Exception) -> bool:
    """Whether the documentation says that this is not done."""
    said = str(error)
    return any(
        part in said for part in ("dense=True", "gradient='adjoint'", 'gradient="adjoint"', "Checkpoint", "'backprop'")
    )


def _agree(
    spec: Solve, backend: str, sol: Any, grads: list[Tensor | None], other: str, right: Any, true: list[Tensor | None]
) -> None:
    names = f"{backend} against {other}"
    if not torch.equal(sol.status, right.status):
        raise Failure("status", f"{names}: {sol.status.tolist()} and {right.status.tolist()}")
    # Steps may differ where an error estimate is within rounding of its limit; results then differ by the tolerance.
    # At a kink the estimate amplifies roundings.
    same = torch.equal(sol.stats.n_accepted, right.stats.n_accepted) and spec.field != "kinks"
    precise = 1e-8 if spec.dtype == "float64" else 3e-4
    bound = precise if same else 200 * spec.rtol + precise
    ok = sol.status == 0
    _near("values", f"states, {names}, same steps: {same}", sol.ys[:, ok], right.ys[:, ok], bound)
    if not torch.equal(torch.isnan(sol.ys), torch.isnan(right.ys)) and same:
        raise Failure("values", f"{names}: NaN in other places")
    for i, (g, r) in enumerate(zip(grads, true, strict=True)):
        if g is None or r is None:
            if (g is None) != (r is None) and float((g if g is not None else r).abs().max()) > 0:  # type: ignore[union-attr]
                raise Failure("gradients", f"{names}: gradient {i} is missing in one")
            continue
        loose = bound if spec.gradient != "adjoint" else 1000 * spec.rtol + precise
        _near("gradients", f"gradient {i}, {names}, same steps: {same}", g, r, 10 * loose)


def _near(kind: str, what: str, got: Tensor, right: Tensor, bound: float) -> None:
    if not got.numel():
        return
    got, right = got.double(), right.double()
    both = torch.isfinite(right)
    if not torch.equal(both, torch.isfinite(got)):
        raise Failure(kind, f"{what}: not finite in one of them\ngot   {got.tolist()}\nright {right.tolist()}")
    error = float((got - right)[both].abs().max()) if bool(both.any()) else 0.0
    size = float(right[both].abs().max()) + 1e-3 if bool(both.any()) else 1.0
    if not error <= bound * size:
        raise Failure(
            kind,
            f"{what}: {error:.3g} of {size:.3g}, allowed {bound:.2g}\n"
            f"got   {got.flatten()[:9].tolist()}\nright {right.flatten()[:9].tolist()}",
        )


def _against_truth(spec: Solve, backend: str, sol: Any) -> None:
    """Of adaptive solves without events and kinks, up to what the tolerance may amount to."""
    if spec.event != "none" or spec.method in FIXED or spec.step_size != "none":
        return
    plain = replace(spec, tolerance="number", controller="I", gradient="none", dense=False, max_steps=100_000)
    tight = replace(plain, method="dopri8", rtol=max(1e-11, 1e-3 * spec.rtol))
    true, _ = _call(tight, "stepped", torch.float64)
    ok = (sol.status == 0) & (true.status == 0)
    tensor = torch.nan_to_num(sol.ys[:, ok].detach().double())
    bound = 1000 * spec.rtol + (1e-9 if spec.dtype == "float64" else 1e-4)
    if spec.field in ("stiff one", "explodes one"):
        bound *= 10
    _near("values", f"{backend} against a tight solve", tensor, true.ys[:, ok], bound)


def _against_dense(spec: Solve, backend: str, sol: Any) -> None:
    """``interpolate`` at the output times gives the outputs."""
    if not spec.dense or spec.event != "none":
        return
    times = torch.as_tensor(_times(spec), dtype=torch.float64)
    try:
        ys = sol.interpolate(times)
    except ValueError as error:
        raise Failure("exception", f"{backend}: interpolate at the output times: {error}") from error
    bound = 20 * spec.rtol + (1e-8 if spec.dtype == "float64" else 1e-4)
    ok = sol.status == 0
    _near("values", f"{backend}, interpolate at the output times", ys[:, ok].detach(), sol.ys[:, ok].detach(), bound)


def script(spec: Solve) -> str:
    """A program that shows a failure, from the root of the project."""
    return f"from tests.fuzz.solves import Solve, check\n\ncheck({spec!r})\n"
