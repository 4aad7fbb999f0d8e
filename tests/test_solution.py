"""What a ``Solution`` says of itself: who solved it, why others did not, and how it prints."""

import pytest
import torch

import fastode
from fastode import Event


def decay(t, y):
    return -y * y


def inverse(t, y):
    return -torch.linalg.inv(y)


@pytest.mark.parametrize("backend", ["cpu", "stepped", "reference"])
def test_the_backend_that_was_asked_for(backend):
    sol = fastode.solve(decay, torch.rand(3, 2), [0.0, 1.0], backend=backend)
    assert (sol.backend, sol.why_not) == (backend, ())


def test_who_came_before_and_why_they_were_not_taken():
    sol = fastode.solve(inverse, torch.eye(2).expand(3, 2, 2).clone(), [0.0, 0.1])
    assert sol.backend == "stepped"
    ((name, reason),) = sol.why_not
    assert name == "cpu"
    assert "linalg_inv" in reason
    assert "not 'cpu': aten.linalg_inv" in repr(sol)


def test_implicit_methods_and_other_gradients():
    y0 = torch.rand(3, 2)
    assert fastode.solve(decay, y0, [0.0, 1.0], method="kvaerno5").backend == "implicit"
    assert fastode.solve(decay, y0, [0.0, 1.0], gradient="backprop").backend == "reference"
    adjoint = fastode.solve(decay, y0.requires_grad_(), [0.0, 1.0], gradient="adjoint")
    assert adjoint.backend == "stepped"
    assert [name for name, _ in adjoint.why_not] == ["cpu"]


def test_printing_is_short_for_large_batches():
    y0 = torch.full((5000, 3), 0.5)
    y0[:3] = -1.0
    text = repr(fastode.solve(decay, y0, [0.0, 1.0, 2.0], on_failure="nan", backend="cpu"))
    assert text.splitlines()[:4] == [
        "Solution by backend 'cpu' on cpu",
        "  t: (3,) float64, 0 to 2",
        "  ys: (3, 5000, 3) float32",
        "  status: 4997 SUCCESS, 3 STEP_UNDERFLOW",
    ]
    assert "(min / median / max)" in text
    assert len(text) < 400


def test_printing_of_trees_events_and_dense_output():
    y0 = {"a": torch.rand(2, 3), "b": torch.rand(2, 1) + 1}
    event = Event(lambda t, y: y["b"][:, 0] - 0.9, terminal=True, name="low")
    sol = fastode.solve(lambda t, y: {"a": -y["a"], "b": -y["b"]}, y0, torch.rand(4, 2).sort(0)[0], dense=True)
    assert "{'a': (4, 2, 3) float32, 'b': (4, 2, 1) float32}" in repr(sol)
    assert "interpolate" in repr(sol)
    sol = fastode.solve(lambda t, y: {"a": -y["a"], "b": -y["b"]}, y0, [0.0, 2.0], events=event)
    assert sol.backend == "cpu"
    assert "2 EVENT" in repr(sol)
    assert "events: low: 2 times" in repr(sol)


def test_printing_without_samples_or_inside_transforms():
    assert "no samples" in repr(fastode.solve(decay, torch.rand(0, 2), [0.0, 1.0]))
    seen = []

    def end(y0):
        sol = fastode.solve(decay, y0, [0.0, 1.0], gradient="backprop")
        seen.append(repr(sol))
        return sol.ys[-1]

    torch.func.vmap(end)(torch.rand(2, 3, 1))
    assert seen[0].splitlines()[2] == "  ys: (2, 3, 1) float32"
