"""The pullback by itself: against finite differences, what it needs, and where gradients end."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastode.fields import ControlledField
from fastode.program.evaluate import evaluate, evaluate_pullback
from fastode.program.ir import SAMPLE, SHARED, Accumulation
from tests.program.tools import F64, compare, program_of


def randn(*shape):
    return torch.randn(*shape, dtype=F64)


class Pullback(torch.autograd.Function):
    """A program with its own pullback, for gradcheck."""

    @staticmethod
    def forward(ctx, made, t, y, *leaves):
        ctx.made, ctx.shared = made, len(made.program.shared)
        ctx.save_for_backward(t, y, *leaves)
        return evaluate(made.program, t, y, leaves[: ctx.shared], leaves[ctx.shared :]).clone()

    @staticmethod
    def backward(ctx, g):
        t, y, *leaves = ctx.saved_tensors
        by_state, shared, sample = evaluate_pullback(
            ctx.made.pullback, t, y, leaves[: ctx.shared], leaves[ctx.shared :], g
        )
        return None, None, by_state, *shared, *sample


def per_sample(t, y, c):
    return torch.tanh(torch.einsum("bij,bj->bi", c[:, :9].view(-1, 3, 3), y) + c[:, 9:]) * t


def scattered(t, y, c):
    return (
        (y[:, [0, 0, 1]] * c[:, [2, 1, 1]]).cumsum(-1) + y.softmax(-1) @ torch.eye(3, dtype=y.dtype) + y.amax(-1, True)
    )


def shared_weights():
    w, u = randn(4, 3), randn(4)
    return lambda t, y: torch.sin(y @ w.T + u) @ w


CASES = {
    "per_sample": (lambda: per_sample, 12),
    "scattered": (lambda: scattered, 3),
    "controlled": (lambda: ControlledField(3, hidden=2), 17),
    "shared": (shared_weights, None),
}


@pytest.mark.parametrize("name", CASES)
def test_finite_differences(name):
    make, controls = CASES[name]
    field, y = make(), randn(4, 3)
    c = None if controls is None else randn(4, controls)
    made = program_of(field, y, c)
    if c is None:
        tensors = [cell.cell_contents for cell in field.__closure__]
        leaves = [x for leaf in made.program.shared for x in tensors if tuple(x.shape) == leaf.shape]
    else:
        leaves = [torch.eye(3, dtype=F64)] * len(made.program.shared) + [c] * len(made.program.sample)
    inputs = [x.clone().requires_grad_() for x in (y, *leaves)]
    assert torch.autograd.gradcheck(lambda *x: Pullback.apply(made, torch.full((4,), 0.7, dtype=F64), *x), inputs)


def test_products_with_parameters_accumulate_without_a_matrix_per_sample():
    net = nn.Linear(3, 5).to(F64)
    made = program_of(lambda t, y: net(y)[:, :3], randn(4, 3))
    by_weight = [term for term in made.pullback.terms if term.leaf.op == SHARED and term.leaf.size == 15]
    assert by_weight
    assert all(term.other is not None for term in by_weight)


def test_terms_name_leaves_of_the_program():
    field = ControlledField(3, hidden=2)
    made = program_of(field, randn(4, 3), randn(4, field.n_controls))
    assert all(isinstance(term, Accumulation) and term.leaf.op == SAMPLE for term in made.pullback.terms)
    assert all(term.leaf in made.pullback.program.values() for term in made.pullback.terms)


def test_values_come_after_what_they_need():
    made = program_of(per_sample, randn(4, 3), randn(4, 12))
    for order in (made.program.values(), made.pullback.values()):
        places = {id(value): i for i, value in enumerate(order)}
        assert len(places) == len(order)
        assert all(places[id(arg)] < places[id(value)] for value in order for arg in value.args)


@pytest.mark.parametrize(
    "stop",
    [
        lambda y: y.detach(),
        torch.detach,
        lambda y: y.data,
        lambda y: y.detach().clone(),
        lambda y: y[:, 1:2].detach(),
    ],
    ids=["method", "function", "data", "clone", "part"],
)
def test_gradient_ends_at_detach(stop):
    compare(lambda t, y: y * torch.sin(stop(y)), randn(4, 3))


def test_gradient_ends_where_it_is_switched_off():
    def field(t, y, c):
        with torch.no_grad():
            gate = torch.sigmoid(y * c)
            with torch.enable_grad():
                gain = torch.tanh(c)
        return gate * y * gain

    compare(field, randn(4, 3), randn(4, 3))


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_gradients_inside_the_field_through_softplus(beta):
    def field(t, y, c):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            potential = F.softplus(y * c, beta).square().sum()
            (slope,) = torch.autograd.grad(potential, y, create_graph=True)
        return slope

    compare(field, 12 * randn(6, 3), 2 * randn(6, 3))


def test_writing_without_gradient_keeps_that_of_what_was_there():
    def field(t, y):
        x = y * 2
        with torch.no_grad():
            x.clamp_(-0.5, 0.5)
        return x

    compare(field, randn(4, 3))


def test_parameters_detached_or_used_twice():
    w = randn(3, 3).requires_grad_()
    compare(lambda t, y: torch.tanh(y @ w) @ w.T + y @ w.detach(), randn(4, 3))
    compare(lambda t, y: y * w.sum() + y * w.diagonal() + y * w[0], randn(4, 3))


def test_a_constant_field_has_no_gradient_by_the_state():
    c = randn(4, 3)
    made = compare(lambda t, y, c: c * t, randn(4, 3), c)
    by_state, _, (by_c,) = evaluate_pullback(made.pullback, torch.ones(4, dtype=F64), c, [], [c], torch.ones_like(c))
    assert not by_state.any()
    assert torch.equal(by_c, torch.ones_like(c))


def test_a_field_that_is_zero():
    compare(lambda t, y: torch.zeros_like(y), randn(4, 3))
    compare(lambda t, y: y.new_ones(y.shape), randn(4, 3))
    compare(lambda t, y: y, randn(4, 3))
    compare(lambda t, y, c: c, randn(4, 3), randn(4, 3))
