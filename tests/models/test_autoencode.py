"""AutoencODE: the controls are the only way from the image to the reconstruction; the ODE is the one it says it is."""

import pytest
import torch

import fastode
from fastode.models import AutoencODE

SMALL = {"image_size": 8, "code_size": 3, "width": 4}


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8)


def test_the_learned_start_is_the_same_for_all_samples():
    model = AutoencODE(**SMALL)
    y0 = model.initial_state(model.encode(images(4)))
    assert y0.shape == (4, 3)
    assert torch.equal(y0, model.start.expand(4, 3))


def test_information_reaches_the_output_only_through_the_controls(monkeypatch):
    model = AutoencODE(**SMALL)
    x = images(4)
    assert (model(x)[0] - model(x)[1]).abs().max() > 1e-4
    fixed = model.controls(torch.zeros(1, 3)).detach()
    monkeypatch.setattr(model, "controls", lambda codes: fixed.expand(codes.shape[0], -1))
    y = model(x)
    assert torch.equal(y, y[:1].expand_as(y))


def test_starting_from_the_encoding_is_another_way(monkeypatch):
    model = AutoencODE(**SMALL, start="encoding")
    codes = model.encode(images(4))
    torch.testing.assert_close(model.initial_state(codes), codes @ model.to_start.weight.T + model.to_start.bias)
    assert not hasattr(model, "start")


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("state_dim", [None, 4])
def test_the_reconstruction_is_decoder_of_solve_of_controls(hidden, state_dim):
    options = {"rtol": 1e-8, "atol": 1e-9, "horizon": 1.5}
    model = AutoencODE(**SMALL, hidden=hidden, state_dim=state_dim, **options).double().eval()
    x = images(3).double()
    controls = model.controls(model.encoder(x))
    d = state_dim or 3
    m = hidden or d
    w, b = controls[:, : m * d].reshape(3, m, d), controls[:, m * d : m * d + m]

    def slope(y):
        z = torch.tanh((w @ y.unsqueeze(2)).squeeze(2) + b)
        if hidden:
            v, c = controls[:, m * d + m : 2 * m * d + m].reshape(3, d, m), controls[:, -d:]
            z = (v @ z.unsqueeze(2)).squeeze(2) + c
        return z

    y, h = model.start.expand(3, d), 1.5 / 300
    for _ in range(300):  # classic Runge-Kutta, written out
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        k4 = slope(y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    torch.testing.assert_close(model(x), torch.sigmoid(model.decoder(y)), rtol=1e-6, atol=1e-7)


def test_the_trajectory_runs_from_the_start_to_the_decoded_state():
    model = AutoencODE(**SMALL).eval()
    x = images(4)
    t = torch.linspace(0.0, model.horizon, 9)
    ys = model.trajectory(x, t)
    assert ys.shape == (9, 4, 3)
    assert torch.equal(ys[0], model.start.expand(4, 3))
    # Asking for more times only interpolates: the steps, and so the end, are the same.
    torch.testing.assert_close(model.decode_state(ys[-1]), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.trajectory(x, t[3:]), ys[3:], rtol=1e-5, atol=1e-5)
    assert torch.equal(model.trajectory(x, t[:1]), ys[:1])
    torch.testing.assert_close(model.trajectory(x, t[-1:]), ys[-1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        ([], r"shape \(T,\)"),
        ([[0.0]], r"shape \(T,\)"),
        ([-0.1, 1.0], "increase within"),
        ([0.0, 4.1], "increase within"),
        ([1.0, 0.5], "increase within"),
        ([1.0, 1.0], "increase within"),
        ([float("nan")], "increase within"),
    ],
)
def test_times_of_a_trajectory_are_checked(t, message):
    with pytest.raises(ValueError, match=message):
        AutoencODE(**SMALL).trajectory(images(2), torch.tensor(t))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "zero"}, "unknown start 'zero': expected one of learned, encoding"),
        ({"horizon": 0.0}, "horizon must be positive"),
        ({"horizon": float("nan")}, "horizon must be positive"),
        ({"hidden": 0}, "hidden must be a positive integer"),
        ({"state_dim": 0}, "state_dim must be a positive integer, got 0"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoencODE(**{**SMALL, **arguments})


def test_solver_arguments_reach_the_solve():
    x = images(2)
    model = AutoencODE(**SMALL, solver={"max_steps": 1}, rtol=1e-6, atol=1e-6)
    with pytest.raises(fastode.SolveError):
        model(x)
    with pytest.raises(ValueError, match="unknown"):
        AutoencODE(**SMALL, method="nonesuch")(x)
    loose, tight = (AutoencODE(**SMALL, rtol=tol, atol=tol).outputs(x).stats.n_steps.sum() for tol in (1e-2, 1e-6))
    assert tight > loose


def test_adjoint_and_checkpoint_gradients_agree():
    torch.manual_seed(1)
    model = AutoencODE(**SMALL, rtol=1e-8, atol=1e-9).double()
    x = images(2).double()
    gradients = []
    for mode in ("checkpoint", "backprop", "adjoint"):
        model.solver["gradient"] = mode
        model.zero_grad()
        (model(x) - x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=1e-6)


def test_under_autocast_the_solve_keeps_float32():
    model = AutoencODE(**SMALL)
    x = images(3)
    with torch.autocast("cpu", torch.bfloat16):
        codes = model.encode(x)
        solution = model.solve(model.initial_state(codes), model.controls(codes))
        output = model.outputs(x)
    assert codes.dtype == torch.bfloat16
    assert solution.ys.dtype == torch.float32
    torch.testing.assert_close(output.reconstruction.float(), model(x), rtol=0.1, atol=0.1)


def test_at_first_codes_of_unit_variance_move_the_state_about_as_much_as_the_biases():
    model = AutoencODE(image_size=8, code_size=64, width=4)
    layers = model.field.unpack(model.controls(torch.randn(2000, 64)))
    assert layers.weight.std().item() == pytest.approx(0.5 / 8, rel=0.1)
    assert layers.bias.std().item() == pytest.approx(1.0, rel=0.1)
