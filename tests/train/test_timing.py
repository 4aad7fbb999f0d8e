"""Times of the parts of a step: they add up, they see a slow solve, and measuring changes nothing."""

import time

import pytest
import torch

from fastode.models import AutoencODE
from fastode.train.timing import StageTimes, forward_times, training_times


def model() -> AutoencODE:
    return AutoencODE(1, 8, code_size=3, width=4)


def test_shares():
    times = StageTimes(encoder=1.0, solve=2.0, decoder=0.5, update=0.5)
    assert times.total == 4.0
    assert times.solve_share == 0.5


@pytest.mark.parametrize("measure", [forward_times, training_times])
def test_parts_are_positive_and_a_slow_solve_is_seen(measure, monkeypatch):
    m = model()
    x = torch.rand(4, 1, 8, 8)
    plain = measure(m, x, repeats=3)
    assert min(plain.encoder, plain.solve, plain.decoder) > 0
    assert (plain.update > 0) == (measure is training_times)
    solve = m.solve

    def slow(*args, **kwargs):
        time.sleep(0.2)
        return solve(*args, **kwargs)

    monkeypatch.setattr(m, "solve", slow)
    slowed = measure(m, x, repeats=3)
    assert slowed.solve > 0.2
    assert slowed.encoder < 0.2
    assert slowed.solve_share > plain.solve_share


def test_a_timed_training_step_is_the_whole_step_and_leaves_the_model_alone(monkeypatch):
    m = model().eval()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    x = torch.rand(4, 1, 8, 8)
    grads = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads.append([p.grad.clone() for p in m.parameters()])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    training_times(m, x, "mse", repeats=1)
    (m.outputs(x).reconstruction - x).square().mean().backward()
    for timed, parameter in zip(grads[-1], m.parameters(), strict=True):
        torch.testing.assert_close(timed, parameter.grad, rtol=1e-4, atol=1e-7)
    assert not m.training
    for name, value in m.state_dict().items():
        assert torch.equal(value, before[name])
