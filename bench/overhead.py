"""What Python and torch cost around a solve: ``python -m bench.overhead``, in microseconds.

The cases are those called ``overhead-*``: one sample of two components. The gradient is that of ``ys`` for a given
cotangent, to the initial state, the controls and the weights; nothing of a loss is counted.

Two floors stand beside them, made of torch alone: ``y0 @ W`` and its gradient to both, and a node of
``torch.autograd.Function`` that takes the tensors of the case and does nothing but allocate what it returns.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor

import fastode
from bench.cases import CASES, OVERHEAD, Problem
from bench.machine import measure
from fastode.tree import leaves, tree_map


class _Nothing(torch.autograd.Function):
    """The least that a node between these tensors can do."""

    @staticmethod
    def forward(ctx: Any, y0: Tensor, *rest: Tensor) -> Tensor:
        ctx.save_for_backward(y0, *rest)
        return torch.empty(2, *y0.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)


class Calls:
    """The calls that are timed, for one case and backend."""

    def __init__(self, problem: Problem, backend: str) -> None:
        case = problem.case
        y0 = problem.y0.detach().requires_grad_()
        controls = problem.controls
        if controls is not None:
            controls = tree_map(lambda leaf: leaf.detach().requires_grad_(), controls)
        tensors = [y0, *([] if controls is None else leaves(controls)), *problem.weights().values()]
        weight = torch.eye(2).requires_grad_()
        cotangent, row = torch.ones(case.n_times, *y0.shape), torch.ones_like(y0)

        def solve() -> Tensor:
            solution = fastode.solve(
                problem.field, y0, problem.t, controls=controls, rtol=case.rtol, atol=case.atol, backend=backend
            )
            ys: Tensor = solution.ys
            return ys

        def without_gradient() -> None:
            with torch.no_grad():
                solve()

        self.named: dict[str, Callable[[], Any]] = {
            "forward, no_grad": without_gradient,
            "forward": solve,
            "forward + backward": lambda: torch.autograd.grad(solve(), tensors, cotangent),
            "an empty node + backward": lambda: torch.autograd.grad(_Nothing.apply(*tensors), tensors, cotangent),
            "y0 @ W + backward": lambda: torch.autograd.grad(y0 @ weight, (y0, weight), row),
        }


def times(call: Callable[[], Any], rounds: int, repeats: int) -> list[float]:
    """Microseconds of a call, one mean per round, garbage collection off."""
    for _ in range(50):
        call()
    enabled = gc.isenabled()
    gc.disable()
    try:
        found = []
        for _ in range(rounds):
            start = time.perf_counter_ns()
            for _ in range(repeats):
                call()
            found.append((time.perf_counter_ns() - start) / repeats / 1e3)
        return found
    finally:
        if enabled:
            gc.enable()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in OVERHEAD]), help="Only these.")
@click.option("--backend", default="cpu", help="auto or a backend's name.")
@click.option("--rounds", default=30, help="Means that the least and the median are taken of.")
@click.option("--repeats", default=100, help="Calls in a row for one mean.")
def main(names: tuple[str, ...], backend: str, rounds: int, repeats: int) -> None:
    """Prints least and median time of each call, in microseconds."""
    click.echo(measure(torch.device("cpu"), torch.float32).line())
    for name in names or [case.name for case in OVERHEAD]:
        for what, call in Calls(CASES[name].problem(), backend).named.items():
            found = times(call, rounds, repeats)
            click.echo(f"{name:20} {what:25} least {min(found):7.1f}   median {statistics.median(found):7.1f}")


if __name__ == "__main__":
    main()
