"""How a ``Solution`` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastode.status import Status
from fastode.tree import tree_map

if TYPE_CHECKING:
    from fastode.solution import Solution

_MOST = 100
"""Characters of a reason."""


class _Shape:
    """Stands for a tensor in a printed tree."""

    def __init__(self, tensor: Tensor) -> None:
        self.text = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

    def __repr__(self) -> str:
        return self.text


def describe(solution: Solution) -> str:
    """Shapes, times, what became of the samples, steps, backend; shapes alone where values cannot be read."""
    lines = [
        f"Solution by backend {solution.backend!r} on {solution.status.device}",
        f"  t: {_Shape(solution.t)}{_times(solution)}",
        f"  ys: {tree_map(_Shape, solution.ys)!r}",
    ]
    if _is_readable(solution.status):
        lines += [f"  status: {_counts(solution.status)}", f"  steps: {_steps(solution.stats)}"]
    if solution.dense is not None:
        lines.append("  interpolate: at any time")
    if solution.events is not None:
        names = [f"{one.name or number}: {_total(one.count)}" for number, one in enumerate(solution.events)]
        lines.append(f"  events: {', '.join(names)}")
    lines += [f"  not {name!r}: {_short(reason)}" for name, reason in solution.why_not]
    return "\n".join(lines)


def _is_readable(tensor: Any) -> bool:
    """Whether a tensor has values that the host may look at: not those of a graph or of a transform."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return type(tensor) is Tensor and not wrapped and tensor.device.type != "meta"


def _times(solution: Solution) -> str:
    t = solution.t.detach()
    if not _is_readable(t) or t.numel() == 0:
        return ""
    low, high = float(t.min()), float(t.max())
    return f", {float(t[0]):.6g} to {float(t[-1]):.6g}" if t.ndim == 1 else f", between {low:.6g} and {high:.6g}"


def _counts(status: Tensor) -> str:
    counted = Counter(status.tolist())
    return ", ".join(f"{n} {Status(code).name}" for code, n in sorted(counted.items())) or "no samples"


def _steps(stats: Any) -> str:
    accepted, rejected = stats.n_accepted, stats.n_rejected
    if accepted.numel() == 0:
        return "none"
    least, most = int(accepted.min()), int(accepted.max())
    return f"{least} / {int(accepted.median())} / {most} (min / median / max), {int(rejected.sum())} rejected in all"


def _total(count: Tensor) -> str:
    return f"{int(count.sum())} times" if _is_readable(count) else "?"


def _short(reason: str) -> str:
    reason = " ".join(reason.split())
    return reason if len(reason) <= _MOST else reason[: _MOST - 3] + "..."
