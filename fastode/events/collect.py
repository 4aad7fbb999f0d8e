"""Results of links put together: outputs, occurrences and polynomials."""

from __future__ import annotations

import torch
from torch import Tensor

from fastode.events import arrays as xp
from fastode.events.arrays import Array
from fastode.problem import Plan
from fastode.solution import DenseOutput, Stats


class Scattered:
    """Rows put together one link after another: values (n, ...) and their places."""

    def __init__(self) -> None:
        self.places: list[tuple[Array, ...]] = []
        self.values: list[Tensor] = []

    def add(self, place: tuple[Array, ...], values: Tensor) -> None:
        if values.shape[0]:
            self.places.append(place)
            self.values.append(values)

    def into(self, target: Tensor) -> Tensor:
        """The target, which may be changed, with the values at their places."""
        if not self.values:
            return target
        held = xp.of(target)
        if isinstance(held, Tensor) or any(x.requires_grad for x in self.values):
            places = (torch.cat([xp.tensor(x) for x in parts]) for parts in zip(*self.places, strict=True))
            return target.index_put(tuple(places), torch.cat(self.values))
        for place, values in zip(self.places, self.values, strict=True):
            held[place] = xp.of(values)
        return target


class Recorded:
    """The occurrences of one event, as they are found."""

    def __init__(self) -> None:
        self.t, self.y = Scattered(), Scattered()

    def add(self, samples: Array, numbers: Array, t: Tensor, y: Tensor) -> None:
        """Occurrences number (n,) of samples (n,) at times (n,), states (n, D)."""
        self.t.add((samples, numbers), t)
        self.y.add((samples, numbers), y)


def rank(samples: Array) -> Array:
    """(n,) int64: how often each entry of ``samples`` (n,) came before."""
    numbers = xp.count_up(samples, len(samples))
    if bool((samples[1:] > samples[:-1]).all()):
        return 0 * numbers
    order = xp.sort_order(samples)
    ordered = samples[order]
    numbers[order] = numbers - xp.search_sorted(ordered, ordered)
    return numbers


def rows(x: Tensor, index: Tensor | None) -> Tensor:
    """Rows of x; index None stands for all of them."""
    return x if index is None else x[index]


def put(x: Tensor, index: Tensor | None, values: Tensor) -> Tensor:
    """Rows of x replaced; index None stands for all of them."""
    return values if index is None else x.index_put((index,), values)


def add(work: list[Array], stats: Stats, mask: Array) -> None:
    """Adds the work of samples ``mask`` (B,)."""
    for i, part in enumerate((stats.n_accepted, stats.n_rejected, stats.n_evals)):
        work[i] = work[i] + xp.where(mask, xp.of(part), 0)


def joined_dense(plan: Plan, links: list[DenseOutput], reached: Tensor, y0: Tensor) -> DenseOutput:
    """The polynomials of all links, each sample's one after another."""
    batch, width = y0.shape
    device = y0.device
    count = torch.zeros(batch, dtype=torch.int64, device=device)
    total = sum((link.n_accepted for link in links), count)
    longest = int(total.max()) if batch else 0
    start = reached.expand(longest, -1).clone()
    size = torch.zeros_like(start)
    rows = torch.zeros(longest, batch, dtype=torch.int64, device=device)
    coefs: list[Tensor] = []
    n_rows = 0
    for link in links:
        number = torch.arange(link.start.shape[0], device=device)[:, None]
        n, b = (number < link.n_accepted).nonzero(as_tuple=True)
        to = count[b] + n
        start[to, b], size[to, b], rows[to, b] = link.start[n, b], link.size[n, b], link.rows[n, b] + n_rows
        count = count + link.n_accepted
        coefs.append(link.coefs)
        n_rows += link.coefs.shape[0]
    if longest:
        number = torch.arange(longest, device=device)[:, None]
        rows = rows.gather(0, torch.minimum(number, (total - 1).clamp_min(0)))
    joined = torch.cat(coefs) if coefs else y0.new_zeros(0, plan.tableau.degree + 1, width)
    return DenseOutput(start, size, rows, joined, total, plan.times[0], reached, y0)
