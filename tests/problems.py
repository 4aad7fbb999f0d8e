"""Problems with closed-form solutions, and comparisons of results, shared by the tests of solves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastode.tree import leaves, tree_map

FIELD_BACKENDS = ["stepped", "reference"]
BACKENDS = [*FIELD_BACKENDS, "cpu"]


@dataclass(frozen=True)
class Problem:
    """y' = field(t, y, controls) from y0 at t = 0, with the solution ``exact(t)`` for t (T, B), (T, B, *state)."""

    field: Callable[..., Any]
    y0: Any
    controls: Any
    exact: Callable[[Tensor], Any]
    span: float = 1.0

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same problem with its tensors rounded to another dtype; ``exact`` stays that of the original."""
        cast = lambda tree: tree_map(lambda leaf: leaf.to(dtype), tree)  # noqa: E731
        return Problem(self.field, cast(self.y0), cast(self.controls), self.exact, self.span)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def linear(batch: int = 7, dim: int = 3, seed: int = 0) -> Problem:
    """y' = A_b y with a matrix of its own for every sample: y = expm(t A_b) y0."""
    matrices = randn(batch, dim, dim, seed=seed) / dim**0.5
    y0 = randn(batch, dim, seed=seed + 1)

    def field(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", a, y)

    def exact(t: Tensor) -> Tensor:
        return torch.einsum("tbij,bj->tbi", torch.matrix_exp(t[..., None, None] * matrices), y0)

    return Problem(field, y0, matrices, exact, 2.0)


def logistic(batch: int = 7, shape: tuple[int, ...] = (3,)) -> Problem:
    """y' = r y (1 - y / K), rates and capacities per sample."""
    ones = [1] * len(shape)
    rate = torch.linspace(0.5, 4.0, batch, dtype=torch.float64).reshape(batch, *ones)
    capacity = torch.linspace(1.0, 2.0, batch, dtype=torch.float64).reshape(batch, *ones)
    y0 = 0.1 + torch.rand(batch, *shape, dtype=torch.float64, generator=generator(3))

    def field(t: Tensor, y: Tensor, controls: tuple[Tensor, Tensor]) -> Tensor:
        r, k = controls
        return r * y * (1 - y / k)

    def exact(t: Tensor) -> Tensor:
        t = t.reshape(*t.shape, *ones)
        return capacity / (1 + (capacity / y0 - 1) * torch.exp(-rate * t))

    return Problem(field, y0, (rate, capacity), exact, 3.0)


def forced(batch: int = 7, dim: int = 2) -> Problem:
    """y' = -k (y - cos t): nonautonomous, stiffness k per sample."""
    k = torch.linspace(1.0, 30.0, batch, dtype=torch.float64)[:, None]
    y0 = randn(batch, dim, seed=5)

    def field(t: Tensor, y: Tensor, k: Tensor) -> Tensor:
        return -k * (y - torch.cos(t))

    def steady(t: Tensor) -> Tensor:
        return (k**2 * torch.cos(t) + k * torch.sin(t)) / (1 + k**2)

    def exact(t: Tensor) -> Tensor:
        t = t[..., None]
        return steady(t) + (y0 - steady(torch.zeros_like(t))) * torch.exp(-k * t)

    return Problem(field, y0, k, exact, 2.0)


def oscillator(batch: int = 7) -> Problem:
    """q' = w p, p' = -w q with frequencies per sample; the state is a dict that holds a tuple."""
    w = torch.linspace(0.5, 6.0, batch, dtype=torch.float64)[:, None]
    q0, p0 = randn(batch, 2, seed=7), randn(batch, 2, seed=8)

    def field(t: Tensor, y: Any, controls: dict[str, Tensor]) -> Any:
        q, (p,) = y["q"], y["rest"]
        return {"q": controls["w"] * p, "rest": (-controls["w"] * q,)}

    def exact(t: Tensor) -> Any:
        c, s = torch.cos(w * t[..., None]), torch.sin(w * t[..., None])
        return {"q": c * q0 + s * p0, "rest": (c * p0 - s * q0,)}

    return Problem(field, {"q": q0, "rest": (p0,)}, {"w": w}, exact, 2.0)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "linear": linear,
    "logistic": logistic,
    "forced": forced,
    "oscillator": oscillator,
}


def batch_of(problem: Problem) -> int:
    return int(leaves(problem.y0)[0].shape[0])


def per_sample(t: Tensor, batch: int) -> Tensor:
    """(T,) or (T, B) times as (T, B) float64."""
    t = t.double()
    return t if t.ndim == 2 else t[:, None].expand(-1, batch)


def largest_error(value: Any, exact: Any) -> float:
    """Largest absolute difference over all leaves, in float64."""
    pairs = zip(leaves(value), leaves(exact), strict=True)
    return max((float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()), default=0.0)


def largest(tree: Any) -> float:
    return max((float(leaf.double().abs().max()) for leaf in leaves(tree) if leaf.numel()), default=0.0)


def assert_as_accurate(value: Any, baseline: Any, truth: Any) -> None:
    """The error of ``value`` is at most twice that of ``baseline``, both against ``truth``, or a few roundings."""
    eps = torch.finfo(leaves(value)[0].dtype).eps
    error, allowed = largest_error(value, truth), 2 * largest_error(baseline, truth) + 8 * eps * largest(truth)
    assert error <= allowed, f"error {error:.3g} where the baseline has {largest_error(baseline, truth):.3g}"


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees are equal bit for bit, NaN equal to NaN."""
    return all(
        x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | (x.isnan() & y.isnan())).all())
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def steps_of(sol: Any, sample: int) -> tuple[Tensor, Tensor]:
    """Starts and signed sizes of the accepted steps of one sample of a solve with ``dense=True``."""
    n = int(sol.stats.n_accepted[sample])
    return sol.dense.start[:n, sample], sol.dense.size[:n, sample]


def stats_of(sol: Any) -> Tensor:
    """(4, B): attempted, accepted and rejected steps, evaluations."""
    return torch.stack([sol.stats.n_steps, sol.stats.n_accepted, sol.stats.n_rejected, sol.stats.n_evals])
