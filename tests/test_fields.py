"""Ready-made fields: their values against formulas written out by hand, their checks, and gradients through a solve."""

import math

import pytest
import torch
from torch import nn

import fastode
from fastode.fields import ACTIVATIONS, ControlledField, MLPField, get_activation

F64 = torch.float64
FORMULAS = {
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "sin": math.sin,
    "identity": lambda x: x,
}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64)


def by_hand(field: ControlledField, y: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
    """The field, one number at a time, from the order of the controls that the docstring promises."""
    d, m = field.dim, field.dim if field.hidden is None else field.hidden
    act = FORMULAS[field.activation]
    rows = []
    for state, numbers in zip(y.tolist(), controls.tolist(), strict=True):
        w, b, rest = numbers[: m * d], numbers[m * d : m * d + m], numbers[m * d + m :]
        x = [act(sum(w[i * d + j] * state[j] for j in range(d)) + b[i]) for i in range(m)]
        if field.hidden is not None:
            v, c = rest[: d * m], rest[d * m :]
            x = [sum(v[i * m + j] * x[j] for j in range(m)) + c[i] for i in range(d)]
        else:
            assert not rest
        rows.append(x)
    return torch.tensor(rows, dtype=y.dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = torch.linspace(-3, 3, 13, dtype=F64)
    expected = torch.tensor([FORMULAS[name](v) for v in x.tolist()], dtype=F64)
    torch.testing.assert_close(get_activation(name)(x), expected)


@pytest.mark.parametrize("name", ["nope", None, ["tanh"]])
def test_unknown_activation_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown activation .*tanh, .*identity"):
        get_activation(name)


@pytest.mark.parametrize("hidden", [None, 1, 5])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_controlled_field_is_the_formula_for_every_sample(dim, hidden, activation):
    field = ControlledField(dim, hidden, activation)
    y, controls = randn(4, dim), randn(4, field.n_controls)
    torch.testing.assert_close(field(torch.zeros(4, 1), y, controls), by_hand(field, y, controls))


def test_number_of_controls_and_no_parameters():
    assert ControlledField(3).n_controls == 3 * 3 + 3
    assert ControlledField(3, 7).n_controls == 2 * 7 * 3 + 7 + 3
    assert not list(ControlledField(3, 7).parameters())
    assert "n_controls=12" in repr(ControlledField(3))


def test_unpack_gives_views_in_the_promised_order():
    field = ControlledField(2, 3)
    controls = torch.arange(2.0 * field.n_controls).reshape(2, -1)
    layers = field.unpack(controls)
    assert layers.weight[1].tolist() == [[17, 18], [19, 20], [21, 22]]
    assert layers.bias[0].tolist() == [6, 7, 8]
    assert layers.out_weight[0].tolist() == [[9, 10, 11], [12, 13, 14]]
    assert layers.out_bias.tolist() == [[15, 16], [32, 33]]
    layers.bias[0, 1] = -1.0
    assert controls[0, 7] == -1.0
    affine = ControlledField(2).unpack(controls[:, :6])
    assert affine.out_weight is None
    assert affine.out_bias is None


def test_samples_do_not_mix():
    field = ControlledField(3, 4)
    y, controls = randn(5, 3), randn(5, field.n_controls)
    together = field(torch.zeros(5, 1), y, controls)
    for i in range(5):
        torch.testing.assert_close(field(torch.zeros(1, 1), y[i : i + 1], controls[i : i + 1])[0], together[i])


def test_empty_batch():
    field = ControlledField(3, 4)
    assert field(torch.zeros(0, 1), torch.zeros(0, 3), torch.zeros(0, field.n_controls)).shape == (0, 3)


@pytest.mark.parametrize(
    ("y", "controls", "message"),
    [
        ((4, 2), (4, 12), r"state of shape \(n, 3\), got \(4, 2\)"),
        ((4, 3, 1), (4, 12), r"state of shape \(n, 3\), got \(4, 3, 1\)"),
        ((4, 3), (5, 12), r"controls of shape \(4, 12\), got \(5, 12\)"),
        ((4, 3), (4, 11), r"controls of shape \(n, 12\) .*got \(4, 11\)"),
        ((4, 3), (12,), r"controls of shape \(4, 12\), got \(12,\)"),
    ],
)
def test_wrong_shapes_say_what_was_expected(y, controls, message):
    with pytest.raises(ValueError, match=message):
        ControlledField(3)(torch.zeros(4, 1), torch.zeros(y), torch.zeros(controls))


def test_controls_of_another_dtype_are_refused():
    with pytest.raises(RuntimeError, match=r"same dtype|scalar type"):
        ControlledField(3)(torch.zeros(4, 1), randn(4, 3), torch.zeros(4, 12))


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
def test_sizes_must_be_positive_integers(size):
    with pytest.raises(ValueError, match="dim must be a positive integer"):
        ControlledField(size)
    with pytest.raises(ValueError, match="hidden must be a positive integer"):
        ControlledField(2, size)
    with pytest.raises(ValueError, match="every entry of hidden must be a positive integer"):
        MLPField(2, (3, size))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("backend", ["reference", "stepped"])
def test_solve_of_linear_controlled_field_is_the_matrix_exponential(dtype, backend):
    dim, n = 2, 3
    field = ControlledField(dim, activation="identity")
    w, y0 = torch.randn(n, dim, dim, dtype=dtype), torch.randn(n, dim, dtype=dtype)
    controls = torch.cat([w.flatten(1), torch.zeros(n, dim, dtype=dtype)], dim=1)
    t = torch.tensor([0.0, 0.7], dtype=dtype)
    ys = fastode.solve(field, y0, t, controls=controls, rtol=1e-6, atol=1e-7, backend=backend).ys
    expected = (torch.linalg.matrix_exp(0.7 * w) @ y0.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(ys[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden", [None, 3])
def test_gradcheck_through_a_solve_with_controls(hidden):
    field = ControlledField(2, hidden)
    y0, controls = randn(2, 2).requires_grad_(), (0.5 * randn(2, field.n_controls)).requires_grad_()
    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)

    def end(y0: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
        return fastode.solve(field, y0, t, controls=controls, method="rk4", step_size=0.25).ys

    assert torch.autograd.gradcheck(end, (y0, controls))


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
@pytest.mark.parametrize("time", [False, True])
def test_mlp_field_is_the_formula(hidden, time):
    field = MLPField(3, hidden, "sin", time=time).double()
    y, t = randn(4, 3), randn(4, 1)
    x = torch.cat([y, t], dim=1) if time else y
    for i, layer in enumerate(field.layers):
        x = x @ layer.weight.T + layer.bias
        x = torch.sin(x) if i < len(field.layers) - 1 else x
    torch.testing.assert_close(field(t, y), x)
    assert len(field.layers) == len(hidden) + 1
    assert f"time={time}" in repr(field)


def test_mlp_field_takes_a_scalar_time():
    field, y = MLPField(3, time=True), torch.randn(4, 3)
    torch.testing.assert_close(field(torch.tensor(0.5, dtype=F64), y), field(torch.full((4, 1), 0.5), y))


def test_mlp_field_checks_the_state():
    with pytest.raises(ValueError, match=r"state of shape \(n, 3\), got \(4, 2\)"):
        MLPField(3)(torch.zeros(4, 1), torch.zeros(4, 2))


def test_mlp_field_with_time_integrates_a_function_of_time():
    """x' = 3 t (weights set by hand) over per-sample intervals: x(b) - x(a) = 1.5 (b^2 - a^2)."""
    field = MLPField(1, (), time=True).double()
    with torch.no_grad():
        field.layers[0].weight.copy_(torch.tensor([[0.0, 3.0]]))
        field.layers[0].bias.zero_()
    t = torch.tensor([[0.0, 0.5], [1.0, 2.0]], dtype=F64)
    ys = fastode.solve(field, torch.zeros(2, 1, dtype=F64), t).ys
    torch.testing.assert_close(ys[-1, :, 0], 1.5 * (t[1] ** 2 - t[0] ** 2))


def test_gradients_of_mlp_parameters_through_a_solve():
    field = MLPField(2, (3,), time=True).double()
    names, values = zip(*field.named_parameters(), strict=True)
    y0, t = randn(2, 2), torch.tensor([0.0, 0.5], dtype=F64)

    def end(*parameters: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for name, value in zip(names, parameters, strict=True):
                field.get_parameter(name).copy_(value)
        return fastode.solve(field, y0, t, method="rk4", step_size=0.25).ys[-1].square().sum()

    start = [value.detach().clone() for value in values]
    gradients = torch.autograd.grad(end(*start), values)
    for k, gradient in enumerate(gradients):
        direction = torch.randn_like(start[k])
        moved = [[v + s * 1e-6 * direction if i == k else v for i, v in enumerate(start)] for s in (1, -1)]
        slope = (end(*moved[0]) - end(*moved[1])) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope.detach(), rtol=1e-5, atol=1e-8)
    end(*start)


def test_fields_are_modules_that_move_and_pickle():
    field = nn.Sequential(MLPField(2))
    assert len(list(field.parameters())) == 4
    import pickle

    again = pickle.loads(pickle.dumps(ControlledField(2, 3, "relu")))
    y, controls = randn(2, 2), randn(2, again.n_controls)
    torch.testing.assert_close(again(torch.zeros(2, 1), y, controls), by_hand(again, y, controls))
