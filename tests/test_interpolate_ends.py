"""``Solution.interpolate`` at the ends of a solve, and of samples that have nowhere to go."""

import math

import pytest
import torch

import fastode


def decay(t, y):
    return -y * torch.cos(t)


@pytest.mark.parametrize("ends", [(0.0, 0.7), (0.1, 2.3), (0.1, -0.9), (-1.1, 0.4)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_numbers_that_round_to_an_end_are_inside(ends, kind):
    """Whether the solve's times or the ones that are asked for are of the coarse dtype."""
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    coarse = torch.tensor(ends, dtype=kind)
    exact = torch.tensor(ends, dtype=torch.float64)
    for times, asked in ((coarse, exact), (exact, coarse), (coarse, coarse), (coarse, coarse.float())):
        sol = fastode.solve(decay, y0, times, rtol=1e-9, atol=1e-9, dense=True)
        slack = torch.finfo(kind).eps * 3
        torch.testing.assert_close(sol.interpolate(asked), sol.ys, rtol=0.0, atol=slack)
    sol = fastode.solve(decay, y0, coarse, dense=True)
    assert sol.interpolate(ends[1]).shape == (2, 1)
    direction = math.copysign(1.0, ends[1] - ends[0])
    for outside in (ends[1] + direction * 0.03, ends[0] - direction * 0.03, math.nan, math.inf):
        with pytest.raises(ValueError, match="inside the interval"):
            sol.interpolate(outside)


def test_float64_times_have_no_slack():
    sol = fastode.solve(decay, torch.ones(1, 1), [0.0, 0.7], dense=True)
    with pytest.raises(ValueError, match="inside the interval"):
        sol.interpolate(math.nextafter(0.7, 1.0))


@pytest.mark.parametrize("gradient", ["checkpoint", "backprop"])
@pytest.mark.parametrize("method", ["dopri5", "rodas5p"])
@pytest.mark.parametrize("company", [False, True])
def test_derivatives_of_a_sample_with_nowhere_to_go(gradient, method, company):
    """The solution through (t0, y0) is known there: y0, with slope f by the time, -f by the start."""
    end = 1.5 if company else 0.5
    t = torch.tensor([[0.5, 0.5], [0.5, end]], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[0.3, -0.7], [1.2, 0.4]], dtype=torch.float64, requires_grad=True)
    sol = fastode.solve(decay, y0, t, method=method, gradient=gradient, dense=True)
    slope = decay(torch.tensor(0.5).double(), y0[0].detach())
    asked = torch.full((1, 2), 0.5, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([2.0, 3.0], dtype=torch.float64)
    loss = (sol.interpolate(asked)[0, 0] * weights).sum()
    by_y0, by_t, by_asked = torch.autograd.grad(loss, [y0, t, asked], retain_graph=True)
    force = float((weights * slope).sum())
    torch.testing.assert_close(by_y0, torch.stack([weights, torch.zeros_like(weights)]))
    torch.testing.assert_close(by_t[:, 0], torch.tensor([-force, 0.0], dtype=torch.float64))
    assert float(by_asked[0, 0]) == pytest.approx(force, rel=1e-12)
    by_y0, by_t = torch.autograd.grad((sol.ys[1, 0] * weights).sum(), [y0, t])
    torch.testing.assert_close(by_y0, torch.stack([weights, torch.zeros_like(weights)]))
    torch.testing.assert_close(by_t[:, 0], torch.tensor([-force, force], dtype=torch.float64))
