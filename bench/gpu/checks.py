"""Correctness checks on the device. One call of ``run`` is one check of one backend, in a child.

The truth is the backend ``reference`` in float64 on the CPU. In float64 a solve must take the same steps and differ by
rounding only. In float32 it must be as accurate as torch: its error may be twice that of the same solve by the
reference in float32, plus a few roundings (the rule of the tests).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

import fastode
from bench.cases.case import generator
from bench.gpu.fields import Example, example
from bench.gpu.worker import Link
from fastode import Checkpoint
from fastode.tree import leaves

F32, F64 = torch.float32, torch.float64
TIMES = [0.0, 0.05, 0.12]
CLOSE = {"ys": (1e-9, 1e-10), "gradient": (1e-7, 1e-8)}
"""Relative to the entry and to the largest entry, in float64: those of the tests of the backend ``cpu``."""


class Wrong(Exception):  # noqa: N818
    """A result that is wrong; says how."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kind: a key of ``KINDS``.
        backend: of ``fastode.solve``.
        field: a name of ``fields``; empty where the kind has its own.
        batch, dim: number of samples and size of the problem.
        dtype: "float64" or "float32".
        what: further choice within the kind.
        device: where.
    """

    kind: str
    backend: str
    field: str = ""
    batch: int = 33
    dim: int = 7
    dtype: str = "float64"
    what: str = ""
    device: str = "cuda"

    @property
    def name(self) -> str:
        """In words."""
        parts = [self.kind, self.what, self.field, f"B={self.batch}", f"d={self.dim}", self.dtype]
        return f"{self.backend}: {', '.join(part for part in parts if part)}"


@dataclass
class Solved:
    """What a solve gave, with gradients of a fixed random functional of the states to everything."""

    ys: list[Tensor]
    grads: list[Tensor]
    status: Tensor
    counts: Tensor
    times: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        return [*self.ys, *self.grads, *([] if self.times is None else [self.times])]


def solved(given: Example, t: Any, backend: str, device: str, dtype: torch.dtype, **options: Any) -> Solved:
    """Solves and differentiates. t: numbers, or a tensor (T,) or (T, B), to which a gradient is taken then."""
    here = given.to(device, dtype)
    sources = here.sources()
    times = None
    if isinstance(t, Tensor):
        times = t.to(device, F64, copy=True).requires_grad_()
        sources = [*sources, times]
    solution = fastode.solve(
        here.field, here.y0, t if times is None else times, controls=here.controls, backend=backend, **options
    )
    ys = leaves(solution.ys)
    g = generator(9)
    loss = sum(
        (y.nan_to_num(0.0) * torch.randn(y.shape, dtype=F64, generator=g).to(device, dtype)).double().sum() for y in ys
    )
    found = torch.autograd.grad(loss, sources, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(sources, found, strict=True)]
    stats = solution.stats
    counts = torch.stack([stats.n_accepted, stats.n_rejected]).cpu()
    at = grads.pop() if times is not None else None
    return Solved([y.detach() for y in ys], grads, solution.status.cpu(), counts, at)


def repeated(check: Check, given: Example, t: Any, dtype: torch.dtype, **options: Any) -> Solved:
    """A solve by the backend, made twice: the same bits, whatever the memory that it is given held before."""
    again = lambda: solved(given, t, check.backend, check.device, dtype, **options)  # noqa: E731
    with _uninitialised(False):
        first = again()
    with _uninitialised(True):
        second = again()
    if not same_bits(first.tensors(), second.tensors()):
        with _uninitialised(False):
            third = again()
        if same_bits(first.tensors(), third.tensors()):
            raise Wrong("another result where memory was filled with NaN before: something unwritten is read")
        raise Wrong("another result when repeated")
    return first


@contextmanager
def _uninitialised(filled: bool) -> Any:
    """Torch fills the memory of every new tensor with NaN, or with the largest integer, or leaves it as it is."""
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = filled
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that have no deterministic form; the comparison tells
            yield
    finally:
        settings.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(bool(((x == y) | (x.isnan() & y.isnan())).all()) for x, y in zip(a, b, strict=True))


def _largest(tensors: Sequence[Tensor]) -> float:
    return max((float(x.double().abs().max()) for x in tensors if x.numel()), default=0.0)


def _error(values: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    worst = 0.0
    for value, right in zip(values, truth, strict=True):
        if value.shape != right.shape:
            raise Wrong(f"shape {tuple(value.shape)} where {tuple(right.shape)} is right")
        difference = (value.double().cpu() - right.double().cpu()).abs()
        if bool(difference.isnan().any()):
            raise Wrong("NaN")
        worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    return worst


def as_accurate(values: Sequence[Tensor], baseline: Sequence[Tensor], truth: Sequence[Tensor], what: str) -> float:
    """Error over that of the baseline, both with a few roundings allowed; more than 2 is wrong."""
    eps = torch.finfo(values[0].dtype).eps
    error, theirs = _error(values, truth), _error(baseline, truth)
    ratio = error / (theirs + 4 * eps * _largest(truth) + 1e-300)
    if ratio > 2:
        raise Wrong(f"{what}: error {error:.2e} where torch's is {theirs:.2e}; with roundings {ratio:.1f} times that")
    return ratio


def close(values: Sequence[Tensor], truth: Sequence[Tensor], what: str) -> float:
    """Largest deviation over what rounding in float64 may do."""
    rtol, atol = CLOSE["ys" if what == "ys" else "gradient"]
    worst = 0.0
    for i, (value, right) in enumerate(zip(values, truth, strict=True)):
        _error([value], [right])
        right = right.cpu()
        allowed = rtol * right.abs() + atol * max(1.0, _largest([right]))
        ratio = float(((value.cpu() - right).abs() / allowed).max()) if right.numel() else 0.0
        worst = max(worst, ratio)
        if ratio > 1:
            raise Wrong(f"{what} {i} of {len(truth)}: deviates {ratio:.2g} times as much as allowed from the reference")
    return worst


def same_steps(found: Solved, expected: Solved) -> None:
    if not torch.equal(found.status, expected.status):
        raise Wrong(f"status {found.status.unique().tolist()} where {expected.status.unique().tolist()} is right")
    other = int((found.counts != expected.counts).any(0).sum())
    if other:
        raise Wrong(f"other numbers of steps than the reference in {other} of {found.counts.shape[1]} samples")


def _compare64(check: Check, given: Example, t: Any, **options: Any) -> dict[str, float]:
    found = repeated(check, given, t, F64, **options)
    expected = solved(given, t, "reference", "cpu", F64, **options)
    same_steps(found, expected)
    ratio = max(close(found.ys, expected.ys, "ys"), close(found.grads, expected.grads, "gradient"))
    if expected.times is not None and found.times is not None:
        ratio = max(ratio, close([found.times], [expected.times], "gradient by t"))
    return {"ratio": ratio}


# -- kinds of checks


def _solve(check: Check) -> dict[str, float]:
    """Forward and every gradient."""
    if check.what == "half weights":
        return _half_weights(check)
    given = example(check.field, check.batch, check.dim)
    if check.what == "graphs":
        return _graphs(check, given)
    if check.what == "many steps":  # more than any buffer of steps holds
        end = 10.0 if check.backend == "stepped" else 100.0  # 800 steps that the host goes along with, or 8000
        span, options = [0.0, end], dict[str, Any](rtol=1e-11, atol=1e-11)
        found = repeated(check, given, span, F64, **options)
        expected = solved(given, span, "cpu", "cpu", F64, **options)  # torch would take a minute
        same_steps(found, expected)
        truth = solved(given, span, "cpu", "cpu", F64, method="dopri8", rtol=1e-13, atol=1e-13)
        ratio = as_accurate(found.ys, expected.ys, truth.ys, "ys")
        ratio = max(ratio, as_accurate(found.grads, expected.grads, truth.grads, "gradients"))
        return {"steps": float(found.counts.sum(0).max()), "ratio": ratio}
    if check.what == "stiff":  # which steps are accepted depends on rounding here
        options = {"rtol": 1e-5, "atol": 1e-6}
        truth = solved(given, TIMES, "cpu", "cpu", F64, method="dopri8", rtol=1e-11, atol=1e-12)
        found = repeated(check, given, TIMES, F64, **options)
        baseline = solved(given, TIMES, "reference", "cpu", F64, **options)
        ratio = as_accurate(found.ys, baseline.ys, truth.ys, "ys")
        return {"ratio": max(ratio, as_accurate(found.grads, baseline.grads, truth.grads, "gradients"))}
    if check.dtype == "float64":
        return _compare64(check, given, TIMES, rtol=1e-6, atol=1e-6)
    if check.what == "fixed steps":  # all take the same steps, whatever their rounding
        options = exact = {"method": "rk4", "step_size": 0.01}
    else:
        options, exact = {"rtol": 1e-5, "atol": 1e-6}, {"method": "dopri8", "rtol": 1e-11, "atol": 1e-12}
    found = repeated(check, given, TIMES, F32, **options)
    baseline = solved(given, TIMES, "reference", "cpu", F32, **options)
    truth = solved(given, TIMES, "reference", "cpu", F64, **exact)
    ratio = as_accurate(found.ys, baseline.ys, truth.ys, "ys")
    return {"ratio": max(ratio, as_accurate(found.grads, baseline.grads, truth.grads, "gradients"))}


def _half_weights(check: Check) -> dict[str, float]:
    """Weights in bfloat16 that the field casts: the solve with the cast, gradients but for their own rounding."""
    weights = torch.randn(check.batch, check.dim, check.dim, generator=generator(2)) / check.dim**0.5
    half = weights.to(check.device, torch.bfloat16)
    y0 = torch.randn(check.batch, check.dim, generator=generator(1)).to(check.device)

    def field(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return torch.tanh((c.to(y.dtype) @ y[..., None])[..., 0])

    results = []
    for own in (half, half.float()):
        leaf = own.clone().requires_grad_()
        options: dict[str, Any] = {"method": "rk4", "step_size": 0.1, "backend": check.backend}
        ys = fastode.solve(field, y0, [0.0, 1.0], controls=leaf, **options).ys
        results.append((ys.detach(), *torch.autograd.grad(ys.square().sum(), leaf)))
    (ys, grad), (same, exact) = results
    allowed = {"ys": 1e-5 * _largest([same]), "gradient": torch.finfo(torch.bfloat16).eps * _largest([exact])}
    errors = {"ys": _error([ys], [same]), "gradient": _error([grad], [exact])}
    for what, error in errors.items():
        if error > allowed[what]:
            raise Wrong(f"{what}: {error:.2e} from those of weights that were cast before, {allowed[what]:.2e} allowed")
    return errors


def _graphs(check: Check, given: Example) -> dict[str, float]:
    """Steps as CUDA graphs: captured without a warning, and the bits of a solve without."""
    options: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
    plain = repeated(check, given, TIMES, getattr(torch, check.dtype), **options)
    fastode.set_cuda_graphs(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found = solved(given, TIMES, check.backend, check.device, getattr(torch, check.dtype), **options)
    finally:
        fastode.set_cuda_graphs(False)
    same_steps(found, plain)
    if not same_bits(found.tensors(), plain.tensors()):
        raise Wrong("other bits with CUDA graphs than without")
    return {"steps": float(found.counts.sum(0).max())}


def _lanes(t: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """A rotation of frequency c0, and c1 x^2, which explodes."""
    x, v = y.unbind(1)
    return torch.stack([c[:, 0] * v + c[:, 1] * x * x, -c[:, 0] * x], dim=1)


def _status(check: Check) -> dict[str, float]:
    """Samples that fail in each of the ways, and that their neighbours are what they are without them."""
    dtype = getattr(torch, check.dtype)
    batch, few = check.batch, {"max_steps": 300, "on_failure": "nan", "rtol": 1e-6, "atol": 1e-6}
    controls = torch.stack([torch.linspace(1.0, 3.0, batch), torch.zeros(batch)], dim=1).double()
    y0 = 1.0 + torch.rand(batch, 2, dtype=F64, generator=generator(4))
    bad = torch.zeros(batch, dtype=torch.bool)
    sick_y0, sick = y0.clone(), controls.clone()
    for i, (start, values) in enumerate(
        [
            ((5.0, 0.0), (0.0, 1.0)),  # explodes at t = 0.2
            ((1.0, 1.0), (torch.nan, 0.0)),  # NaN at the start
            ((1.0, 1.0), (4000.0, 0.0)),  # more steps than there may be
            ((torch.inf, 1.0), (1.0, 0.0)),  # infinite from the start
        ]
    ):
        index = (2 + 5 * i) % batch
        bad[index], sick_y0[index] = True, torch.tensor(start, dtype=F64)
        sick[index] = torch.tensor(values, dtype=F64)
    t = [0.0, 0.5, 1.0]
    found = repeated(check, Example(_lanes, sick_y0, sick), t, dtype, **few)
    healthy = solved(Example(_lanes, y0, controls), t, check.backend, check.device, dtype, **few)
    expected = solved(Example(_lanes, sick_y0, sick), t, "reference", "cpu", dtype, **few)
    if not torch.equal(found.status, expected.status):
        raise Wrong(f"status {found.status[bad].tolist()} of the bad samples, {expected.status[bad].tolist()} is right")
    good = (~bad).to(check.device)
    pairs = [(a[:, good], b[:, good]) for a, b in zip(found.ys, healthy.ys, strict=True)]
    if not same_bits(*map(list, zip(*pairs, strict=True))):
        raise Wrong("failing samples change the states of others")
    # The functional that is differentiated has the same weights for a good sample in both solves.
    if not same_bits([g[good] for g in found.grads], [g[good] for g in healthy.grads]):
        raise Wrong("failing samples change the gradients of others")
    if any(bool((g[~good] != 0).any()) for g in found.grads):
        raise Wrong("a failed sample has a gradient")
    if not all(torch.equal(a.isnan().cpu(), b.isnan()) for a, b in zip(found.ys, expected.ys, strict=True)):
        raise Wrong("NaN in other places than in the reference")
    return {"failed": float(bad.sum())}


def _times(check: Check) -> dict[str, float]:
    """Output times of all kinds, and the gradient by them."""
    given = example(check.field or "controlled tanh", check.batch, check.dim)
    own = torch.rand(4, check.batch, dtype=F64, generator=generator(8)).sort(0).values
    t = {
        "per sample": own,
        "per sample, reversed": own.flip(0),
        "reversed": torch.linspace(1.0, 0.0, 5, dtype=F64),
        "repeated": torch.tensor([0.0, 0.0, 0.3, 0.3, 1.0, 1.0], dtype=F64),
        "one": torch.tensor([0.5], dtype=F64),
        "many": torch.linspace(0.0, 1.0, 301, dtype=F64),
    }[check.what]
    return _compare64(check, given, t, rtol=1e-6, atol=1e-6)


def _checkpoint(check: Check) -> dict[str, float]:
    """Fewer states kept, the same gradient."""
    given = example(check.field or "mlp", check.batch, check.dim)
    policy = {"every 3": Checkpoint(3), "few bytes": Checkpoint(max_bytes=2000)}[check.what]
    options = {"rtol": 1e-9, "atol": 1e-9}
    kept = solved(given, [0.0, 1.0], check.backend, check.device, F64, **options)
    fewer = repeated(check, given, [0.0, 1.0], F64, gradient=policy, **options)
    return {"ratio": max(close(fewer.ys, kept.ys, "ys"), close(fewer.grads, kept.grads, "gradient"))}


def _method(check: Check) -> dict[str, float]:
    """Another tableau or controller."""
    given = example(check.field or "mlp", check.batch, check.dim)
    options: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}
    if check.what == "PI":
        options["controller"] = fastode.PIController()
    elif check.what == "PID":
        options["controller"] = fastode.PIDController(pcoeff=0.2, icoeff=0.3, dcoeff=0.1)
    elif check.what == "tolerances":
        spread = torch.linspace(0.5, 2.0, check.dim, dtype=F64)
        options = {"rtol": 1e-6 * spread, "atol": 1e-6 * spread.flip(0)}
    else:
        tableau = fastode.TABLEAUS[check.what]
        options["method"] = check.what
        if not tableau.is_adaptive:
            options = {"method": check.what, "step_size": 0.05}
    return _compare64(check, given, [0.0, 0.5, 1.0], **options)


def _dense(check: Check) -> dict[str, float]:
    """States between output times."""
    given = example(check.field or "controlled tanh", check.batch, check.dim)
    query = torch.linspace(0.0, 1.0, 17, dtype=F64)
    values = []
    for backend, device in ((check.backend, check.device), ("reference", "cpu")):
        here = given.to(device, F64)
        with torch.no_grad():
            found = fastode.solve(here.field, here.y0, [0.0, 1.0], controls=here.controls, backend=backend, dense=True)
            values.append(leaves(found.interpolate(query.to(device))))
    return {"ratio": close(values[0], values[1], "ys")}


KINDS: dict[str, Callable[[Check], dict[str, float]]] = {
    "solve": _solve,
    "status": _status,
    "times": _times,
    "checkpoint": _checkpoint,
    "method": _method,
    "dense": _dense,
}


def run(link: Link, **arguments: Any) -> dict[str, Any]:
    """One check: its outcome ("passed", "failed", "refused", "error"), the reason, and numbers."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    check = Check(**arguments)
    result: dict[str, Any] = {**asdict(check), "outcome": "passed", "reason": ""}
    try:
        result["numbers"] = KINDS[check.kind](check)
    except Wrong as wrong:
        result |= {"outcome": "failed", "reason": str(wrong)}
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
        refused = isinstance(error, RuntimeError) and "cannot run this solve" in str(error)
        result |= {"outcome": "refused" if refused else "error", "reason": text}
    return result
