"""What a client of torchdiffeq is here: a model, its data, and the loss of a step of training."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Client(nn.Module):
    """A script that trains with torchdiffeq's functions; parameters and data (buffers) come from fixed seeds.

    Args:
        ode: ``torchdiffeq``, or what stands in its place; nothing else of a script depends on the library.

    Attributes:
        about: what it is, in a line.
        rate: learning rate of Adam.
        dtype: of parameters and data.
        rtol: tolerance that the script asks for, or that is torchdiffeq's default.
        reference: tolerance of the solve that errors are measured against.
        small: arguments for a size at which such a solve is quick.
    """

    about: ClassVar[str]
    rate: ClassVar[float] = 1e-2
    dtype: ClassVar[torch.dtype] = torch.float32
    rtol: ClassVar[float] = 1e-7
    reference: ClassVar[float] = 1e-10
    small: ClassVar[dict[str, Any]] = {}

    def __init__(self, ode: Any) -> None:
        super().__init__()
        self.ode = ode

    def loss(self, step: int) -> Tensor:
        """The loss of a step, counted from 0, on the batch of that step."""
        raise NotImplementedError


class Training:
    """Steps of Adam on a client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.optimiser = torch.optim.Adam(client.parameters(), lr=client.rate)
        self.losses: list[float] = []

    def step(self) -> None:
        """One step; the loss before it is kept."""
        self.optimiser.zero_grad()
        loss = self.client.loss(len(self.losses))
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.item())


def loss_and_gradients(client: Client) -> dict[str, Tensor]:
    """The loss of step 0, and its gradient by each parameter that has one."""
    loss = client.loss(0)
    named = dict(client.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    found = {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}
    return {"loss": loss.detach(), **found}


def error(client: Client) -> float:
    """Error of the loss at step 0, relative, or of its gradients in units of the greatest one; the greater.

    Against the same parameters and data in float64, solved by torchdiffeq with far tighter tolerances and
    differentiated by backpropagation.
    """
    mine = loss_and_gradients(client)
    true = loss_and_gradients(with_library(client, _tight(client.reference)).double())
    if mine.keys() != true.keys():
        raise RuntimeError(f"gradients by different parameters: {sorted(mine.keys() ^ true.keys())}")
    worst = {name: float((mine[name].double() - x).abs().max()) for name, x in true.items()}
    loss = worst.pop("loss") / abs(float(true.pop("loss")))
    return max(loss, max(worst.values()) / max(float(x.abs().max()) for x in true.values()))


def with_library(client: Client, ode: Any) -> Client:
    """A copy, data and parameters included, that solves by another library."""
    return copy.deepcopy(client, {id(client.ode): ode})


def _tight(tol: float) -> Any:
    import torchdiffeq

    def odeint(func: Any, y0: Any, t: Tensor, *, event_fn: Any = None, **unused: Any) -> Any:
        return torchdiffeq.odeint(func, y0, t, rtol=tol, atol=tol, method="dopri8", event_fn=event_fn)

    def odeint_event(*args: Any, odeint_interface: Any, **how: Any) -> Any:
        return torchdiffeq.odeint_event(*args, odeint_interface=odeint, **how)

    return SimpleNamespace(odeint=odeint, odeint_adjoint=odeint, odeint_event=odeint_event)
