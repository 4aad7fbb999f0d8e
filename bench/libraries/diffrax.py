"""diffrax: jit and vmap of one sample's solve, so that each sample has its own step sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.cases import FORWARD, GRADIENT, MODES, Problem
from bench.libraries.base import DoesNotApply, Run, Work, require
from fastode.tree import leaves, tree_map


class Diffrax:
    """``diffeqsolve`` with Dopri5, PIDController(rtol, atol) and RecursiveCheckpointAdjoint, compiled ahead of time.

    ``throw=False`` spares it the check for errors inside the compiled code; results are checked outside.
    """

    name, package = "diffrax", "diffrax"
    modes = MODES

    def prepare(self, problem: Problem, mode: str) -> Run:
        require(self.package)
        require("jax")
        import diffrax
        import jax
        import jax.numpy as jnp

        if problem.jax_field is None or type(problem) is not Problem:
            raise DoesNotApply("there is no jax version of this model")
        jax.config.update("jax_enable_x64", problem.dtype == torch.float64)
        if problem.device.type == "cuda":
            # As torch by default: no products in tf32. On a CPU this changes nothing.
            jax.config.update("jax_default_matmul_precision", "float32")
            try:
                device = jax.devices("gpu")[0]
            except RuntimeError as reason:
                raise DoesNotApply(f"jax sees no GPU: {str(reason).splitlines()[0]}") from reason
        else:
            device = jax.devices("cpu")[0]
        give = lambda tensor: jax.device_put(tensor.detach().cpu().numpy(), device)  # noqa: E731
        y0, t = tree_map(give, problem.y0), give(problem.t)
        controls = None if problem.controls is None else tree_map(give, problem.controls)
        weights = {name: give(weight) for name, weight in problem.weights().items()}
        case, jax_field = problem.case, problem.jax_field

        def solve_one(y0: Any, controls: Any, weights: Any) -> Any:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, args: jax_field(t, y, *args)),
                diffrax.Dopri5(),
                t[0],
                t[-1],
                None,
                y0,
                (controls, weights),
                saveat=diffrax.SaveAt(t1=True) if case.n_times == 2 else diffrax.SaveAt(ts=t[1:]),
                stepsize_controller=diffrax.PIDController(rtol=case.rtol, atol=case.atol),
                adjoint=diffrax.RecursiveCheckpointAdjoint(),
                throw=False,
            )
            return solution.ys, solution.stats["num_steps"], solution.result == diffrax.RESULTS.successful

        batched = jax.vmap(solve_one, in_axes=(0, 0, None))

        def squares(wanted: Any, fixed: Any) -> Any:
            controls = fixed if problem.controls_fixed else wanted[1]
            ys, steps, fine = batched(wanted[0], controls, wanted[2])
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(ys)), (steps, fine)

        def gradient(wanted: Any, fixed: Any) -> Any:
            grads, (steps, fine) = jax.grad(squares, has_aux=True)(wanted, fixed)
            return grads, steps, fine

        if mode == FORWARD:
            return _run(*_compile(batched, device, y0, controls, weights), _by_time)
        if mode == GRADIENT:
            wanted = (y0, None if problem.controls_fixed else controls, weights)
            compiled = _compile(gradient, device, wanted, controls if problem.controls_fixed else None)
            names = list(weights)
            return _run(*compiled, lambda parts: [*leaves(parts[:2]), *(parts[2][name] for name in names)])
        target = give(problem.target)

        def loss(weights: Any) -> Any:
            ys, steps, fine = batched(y0, controls, weights)
            return ((jnp.swapaxes(ys, 0, 1) - target) ** 2).mean(), (steps, fine)

        def adam(step: Any, state: Any) -> Any:
            weights, first, second = state
            (value, (steps, fine)), grads = jax.value_and_grad(loss, has_aux=True)(weights)
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
            rate, scale = problem.learning_rate / (1 - 0.9**step), 1 / (1 - 0.999**step)
            weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v * scale) + 1e-8), weights, first, second)
            return (weights, first, second), value, steps, fine

        zeros = jax.tree.map(jnp.zeros_like, weights)
        one_step = _compile(adam, device, jnp.ones((), y0.dtype), (weights, zeros, zeros))[0]

        def train() -> Any:
            state, losses, everything_fine = (weights, zeros, zeros), [], []
            for step in range(case.train_steps):
                state, value, steps, fine = one_step(jnp.asarray(step + 1, y0.dtype), state)
                losses.append(value)
                everything_fine.append(fine)
            return [losses[0], losses[-1]], steps, jnp.stack(everything_fine)

        return _run(train, (), list)


def _by_time(ys: Any) -> list[Any]:
    """(B, T, ...) to (T, B, ...)."""
    return [leaf.swapaxes(0, 1) for leaf in leaves(ys)]


def _run(function: Any, arguments: tuple[Any, ...], unpack: Callable[[Any], list[Any]]) -> Run:
    import jax
    import numpy as np

    last: dict[str, Any] = {}

    def call() -> Any:
        last["result"] = jax.block_until_ready(function(*arguments))
        return last["result"]

    def values(result: Any) -> list[Tensor]:
        parts, _, fine = result
        if not bool(fine.all()):
            raise RuntimeError(f"{int((~fine).sum())} of {fine.size} solves failed")
        return [torch.from_numpy(np.array(leaf)) for leaf in unpack(parts) if leaf is not None]

    def work() -> Work:
        steps = last["result"][1]
        return Work(float(steps.mean()), float(steps.max()))

    return Run(call, values, work)


def _compile(function: Any, device: Any, *arguments: Any) -> tuple[Any, tuple[Any, ...]]:
    """The function compiled for these arguments, and the arguments."""
    import jax

    with jax.default_device(device):
        return jax.jit(function).lower(*arguments).compile(), arguments
