"""Ways to cut a gradient, and to change memory behind its back: the solver has torch's values and gradients."""

import pytest
import torch

import fastode
from fastode.program.capture import Capture
from tests.program.tools import F64, attempt

W = torch.nn.Parameter(torch.tensor([0.7, -1.3], dtype=F64))
TIMES = torch.tensor([0.0, 1.0], dtype=F64)


def without(y):
    with torch.no_grad():
        return y.sin()


def scaled_without(y):
    z = y * 2
    with torch.no_grad():
        z.mul_(3.0)
    return z


def written_without(y):
    z = y.clone()
    with torch.no_grad():
        z[:, 0] = y[:, 1] ** 2
    return z


def with_again(y):
    with torch.no_grad(), torch.enable_grad():
        return y.sin()


def written_through_data(y):
    z = y * 1.0
    z.data[:, 0] = 5.0
    return z * y


def written_through_an_alias(y):
    z = y * 1.0
    z.detach().mul_(2.0)
    return z * y


def seen_through_an_alias(y):
    z = y * 1.0
    before = z.detach()
    z.mul_(2.0)
    return before * y


def alias_of_constants(y):
    z = W * torch.ones_like(W)
    before = z.detach()
    before.mul_(2.0)
    return z * y


def cut_afterwards(y):
    z = y.sin()
    z.detach_()
    return z * y


def inferred(y):
    with torch.inference_mode():
        z = y.sin()
    return z.clone() * y


CUTS = {  # and whether the field has a program
    "data": (lambda y: y.data * y, True),
    "no_grad": (lambda y: without(y) * y, True),
    "no_grad in place": (scaled_without, True),
    "no_grad writing": (written_without, True),
    "no_grad and enable_grad": (with_again, True),
    "no_grad of a weight": (lambda y: y * without(W), True),
    "inference mode": (inferred, True),
    "writing through data": (written_through_data, False),
    "writing through an alias": (written_through_an_alias, False),
    "reading through an alias": (seen_through_an_alias, False),
    "an alias of constants": (alias_of_constants, False),
    "clone and detach": (lambda y: y.clone().detach() * y.detach().clone(), True),
    "new_tensor": (lambda y: y.new_tensor(y) * y, True),
    "tensor": (lambda y: torch.tensor(y) * y, True),
    "as_tensor": (lambda y: torch.as_tensor(y) * y, True),
    "detach in place": (cut_afterwards, False),
    "to integers": (lambda y: y.to(torch.int64).to(y.dtype) * y, False),
    "to truth": (lambda y: y.bool() * y, True),
    "sign, round, floor": (lambda y: y.sign() * y + y.round() + y.floor() * y, True),
    "straight through": (lambda y: y + (y.round() - y).detach(), True),
    "straight through data": (lambda y: (y.round() - y).data + y, True),
    "a weight": (lambda y: y * W.detach() + y * W.data, True),
    "a new leaf": (lambda y: y.detach().requires_grad_() * y, True),
    "a part": (lambda y: torch.cat([y[:, :1].detach(), y[:, 1:]], 1) ** 2, True),
    "a condition": (lambda y: torch.where(y.detach() > 0, y, 2 * y), True),
    "a copy": (lambda y: torch.zeros_like(y).copy_(y.detach()) * y, True),
    "a norm": (lambda y: y / y.norm(dim=-1, keepdim=True).detach(), True),
}


@pytest.mark.filterwarnings("ignore:To copy construct:UserWarning")
@pytest.mark.parametrize("name", CUTS)
def test_as_torch_has_it(name):
    cut, fused = CUTS[name]
    torch.manual_seed(0)
    y0 = 2 * torch.randn(5, 2, dtype=F64)
    found = attempt(lambda t, y: cut(y), y0)
    assert isinstance(found, Capture) == fused, found
    results = []
    for run in (
        lambda y: fastode.solve(lambda t, y: cut(y), y, TIMES, method="euler").ys[-1],
        lambda y: y + cut(y),
    ):
        y = y0.clone().requires_grad_()
        out = run(y)
        g = torch.arange(1.0, 11.0, dtype=F64).view_as(out)
        results.append((out.detach(), *torch.autograd.grad(out, [y, W], g, materialize_grads=True)))
    for got, right in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-12)


def test_comparison_in_a_wider_type():
    """Torch compares float32 with a float64 tensor in float64: float32's 0.1 is larger than 0.1."""
    bound = torch.tensor([0.1, 0.1], dtype=F64)
    y0 = torch.full((3, 2), 0.1)
    for field in (lambda t, y: (y > bound).float(), lambda t, y: torch.where(y > bound, 1.0, y)):
        ys = fastode.solve(field, y0, TIMES, method="euler").ys[-1]
        torch.testing.assert_close(ys, y0 + field(None, y0), rtol=0.0, atol=0.0)
    number = torch.tensor(0.1, dtype=F64)  # of no dimension: in float32, as torch has it
    found = attempt(lambda t, y: torch.where(y > number, 1.0, y), y0)
    assert isinstance(found, Capture), found
    ys = fastode.solve(lambda t, y: (y > number).float(), y0, TIMES, method="euler").ys[-1]
    torch.testing.assert_close(ys, y0, rtol=0.0, atol=0.0)
