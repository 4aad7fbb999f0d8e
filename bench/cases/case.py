"""A workload: sizes, span and tolerance (``Case``), its tensors (``Problem``), and what is done with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastode.tree import leaves, tree_map

FORWARD, GRADIENT, TRAIN = MODES = ("forward", "gradient", "train")
CHECKED = 1024
"""Errors of larger batches are measured on this many samples, spread evenly."""

Solve = Callable[["Problem", Any, Any], Any]
"""States at t[1:], a tree (T - 1, B, ...) like y0, from (problem, y0, controls); differentiable in both and in the
weights where the mode asks for it."""


@dataclass(frozen=True)
class Case:
    """Sizes, span and tolerance of one workload.

    Attributes:
        name: what tables call it.
        about: one line for people.
        make: its tensors, float32 on the CPU, the same at every call.
        batch: number of samples, B.
        width: size of one sample's problem, for example the length of its state.
        span: first and last time.
        n_times: output times, evenly spaced over the span, the first included.
        rtol, atol: tolerances.
        modes: ``forward``: the states at t[1:]; ``gradient``: that, and the gradient of the sum of their squares to the
            initial state, the controls and the weights; ``train``: ``train_steps`` steps of Adam.
        train_steps: see modes.
        group: "gpu" for sizes that keep a GPU busy; `fastode bench` runs these only when they are named.
    """

    name: str
    about: str
    make: Callable[[Case], Problem]
    batch: int
    width: int
    span: tuple[float, float] = (0.0, 1.0)
    n_times: int = 2
    rtol: float = 1e-5
    atol: float = 1e-6
    modes: tuple[str, ...] = (FORWARD, GRADIENT)
    train_steps: int = 0
    group: str = ""

    def problem(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
        """The tensors of the case; in every dtype those of float32, so that all solve the same problem."""
        return self.make(self).to(device, dtype)

    def times(self) -> Tensor:
        """(T,) output times."""
        return torch.linspace(*self.span, self.n_times)

    def with_tolerance(self, rtol: float) -> Case:
        """The same workload with rtol, and atol in proportion."""
        return replace(self, rtol=rtol, atol=self.atol / self.rtol * rtol)


@dataclass
class Problem:
    """The tensors of a case.

    Attributes:
        case: sizes, span, tolerances.
        field: ``field(t, y)``, or ``field(t, y, controls)`` if there are controls, for a batch, in ordinary torch code;
            weights that samples share are the parameters of this module. t broadcasts against (n, 1).
        y0: (B, ...), a tensor or a tuple of them.
        t: (T,) output times.
        controls: per-sample tensors (B, ...), a tensor or a dict; None if there are none.
        controls_fixed: the controls are data, no gradient is wanted.
        target: (T - 1, B, ...), what training fits.
        learning_rate: of Adam.
        jax_field: ``jax_field(t, y, controls, weights)`` for one sample in jax.numpy; weights by their name in torch.
        flops: additions and multiplications of one evaluation for one sample, every other function counted as one.
    """

    case: Case
    field: Callable[..., Any]
    y0: Any
    t: Tensor
    controls: Any = None
    controls_fixed: bool = False
    target: Tensor | None = None
    learning_rate: float = 1e-2
    jax_field: Callable[..., Any] | None = None
    flops: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.t.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""
        return self.t.dtype

    def to(self, device: str | torch.device, dtype: torch.dtype) -> Problem:
        """The same problem elsewhere; weights are copied."""
        move = lambda tree: tree_map(lambda leaf: leaf.to(device, dtype), tree)  # noqa: E731
        field = copy.deepcopy(self.field).to(device, dtype) if isinstance(self.field, nn.Module) else self.field
        controls = None if self.controls is None else move(self.controls)
        target = None if self.target is None else move(self.target)
        return replace(self, field=field, y0=move(self.y0), t=move(self.t), controls=controls, target=target)

    def weights(self) -> dict[str, Tensor]:
        """The parameters that all samples share, by name."""
        return dict(self.field.named_parameters()) if isinstance(self.field, nn.Module) else {}

    # What is checked and timed; ``solve`` is a library's.

    def forward(self, solve: Solve) -> list[Tensor]:
        """The states at t[1:], without gradient."""
        with torch.no_grad():
            return leaves(solve(self, self.y0, self.controls))

    def gradient(self, solve: Solve) -> list[Tensor]:
        """Gradients of the sum of squares of the states at t[1:] to y0, the controls and the weights."""
        leaf = lambda tensor: tensor.detach().requires_grad_()  # noqa: E731
        y0 = tree_map(leaf, self.y0)
        controls = self.controls
        if controls is not None and not self.controls_fixed:
            controls = tree_map(leaf, controls)
        wanted = [*leaves(y0), *self.controls_wanted(controls), *self.weights().values()]
        loss = sum(part.square().sum() for part in leaves(solve(self, y0, controls)))
        return list(torch.autograd.grad(loss, wanted))

    def controls_wanted(self, controls: Any) -> list[Tensor]:
        """The controls that a gradient is wanted for."""
        return [] if controls is None or self.controls_fixed else leaves(controls)

    def train(self, solve: Solve) -> list[Tensor]:
        """Mean squared distance to the target, before the first and before the last step of Adam."""
        parameters = list(self.weights().values())
        start = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        first = last = torch.tensor(0.0)
        for step in range(self.case.train_steps):
            optimizer.zero_grad()
            last = self.training_loss(solve)
            last.backward()
            optimizer.step()
            first = last if step == 0 else first
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        return [first.detach(), last.detach()]

    def training_loss(self, solve: Solve) -> Tensor:
        """What training lowers."""
        assert self.target is not None
        loss: Tensor = (solve(self, self.y0, self.controls) - self.target).square().mean()
        return loss

    # For the check of errors and for the floor.

    def checked(self) -> Tensor | None:
        """Samples on which errors are measured; None means all. Gradients of shared weights need all."""
        if self.case.batch <= CHECKED or self.weights():
            return None
        return torch.linspace(0, self.case.batch - 1, CHECKED).long()

    def rows(self, index: Tensor) -> Problem:
        """The problem of some samples only."""
        some = lambda tree: None if tree is None else tree_map(lambda leaf: leaf[index.to(leaf.device)], tree)  # noqa: E731
        return replace(self, y0=some(self.y0), controls=some(self.controls))

    def values(self) -> dict[str, int]:
        """How many numbers go in (``inputs``), one state has (``state``) and come out (``outputs``), of all samples."""
        state = sum(leaf.numel() for leaf in leaves(self.y0))
        controls = 0 if self.controls is None else sum(leaf.numel() for leaf in leaves(self.controls))
        weights = sum(p.numel() for p in self.weights().values())
        return {
            "inputs": state + controls + weights,
            "state": state,
            "outputs": state * (self.case.n_times - 1),
            "gradients": state + (0 if self.controls_fixed else controls) + weights,
        }


def generator(seed: int = 0) -> torch.Generator:
    """Random numbers that are the same on every machine: made on the CPU."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float32 on the CPU."""
    return torch.randn(*shape, generator=generator(seed))
