"""Fixed steps as functions of the output times and of the step size.

With step sizes that are no constants of the gradient, the derivatives of a solve are those of the numbers that come
out: from output to output a step from t_e to t_f has size t_f - t_e; with a step size s, step number j after t_0, or
after the last output where steps end at outputs, starts j s later, and the one that is cut has the size that is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.problem import Plan


@dataclass(frozen=True)
class FixedClock:
    """Start, signed size and end of the accepted steps, with their graph.

    Attributes:
        start, size, end: (N, B) float64; their numbers are those of the steps.
        end_is: (N, B) int64, the output time that the end of a step is by itself; -1 where it is none.
    """

    start: Tensor
    size: Tensor
    end: Tensor
    end_is: Tensor


def fixed_clock(
    plan: Plan, t: Tensor, t_next: Tensor, h: Tensor, times: Tensor, step_size: Tensor | None
) -> FixedClock:
    """The clock of steps that were taken.

    Args:
        plan: a solve with fixed steps.
        t: (N, B) float64, start of each step.
        t_next: (N, B) float64, its end.
        h: (N, B) float64, its signed size.
        times: (T, B) float64, the output times with their graph.
        step_size: (B,) float64 with its graph; None where it has none.
    """
    assert plan.step_size is not None
    known = plan.times
    direction = torch.sign(known[-1] - known[0])
    from_outputs = torch.isinf(plan.step_size)
    # From output to output; of repeated times the first counts.
    first, target = _first(known, t), _first(known, t_next)
    at_output, to_output = times.gather(0, first), times.gather(0, target)
    # With a step size.
    size = plan.step_size if step_size is None else step_size
    finite = torch.where(from_outputs, 1.0, size)
    number = torch.arange(t.shape[0], device=t.device)[:, None].expand_as(t)
    if plan.step_to_outputs:
        starts_anew = (known[:, None] == t).any(0)
        origin = torch.where(starts_anew, number, 0).cummax(0).values
        base, cut = at_output.gather(0, origin), (known[:, None] == t_next).any(0)
    else:
        origin, base, cut = torch.zeros_like(number), times[0], t_next == known[-1]
        target = torch.where(cut & ~from_outputs, len(known) - 1, target)
        to_output = times.gather(0, target)
    begin = base + (number - origin) * (direction * finite)
    along = torch.where(cut, to_output - begin, direction * finite)

    start = _with_graph_of(t, torch.where(from_outputs, at_output, begin))
    span = _with_graph_of(h, torch.where(from_outputs, to_output - at_output, along))
    end = _with_graph_of(t_next, torch.where(from_outputs, to_output, begin + along))
    end_is = torch.where(from_outputs | cut, target, -1)
    return FixedClock(start, span, end, end_is)


def _first(known: Tensor, when: Tensor) -> Tensor:
    """(N, B) int64: the first of the times (T, B) that is equal; 0 where none is."""
    return (known[:, None] == when).to(torch.int8).argmax(0)


def _with_graph_of(value: Tensor, source: Tensor) -> Tensor:
    """The numbers of one tensor with the derivatives of another."""
    return value + (source - source.detach())
