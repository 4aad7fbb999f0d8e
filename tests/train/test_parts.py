"""The parts of a run: settings, losses, learning-rate schedule, batches and timing."""

import math
from itertools import pairwise

import pytest
import torch

from fastode.models import ModelOutput
from fastode.train.config import TrainConfig
from fastode.train.data import load_data
from fastode.train.extra import PACKAGES, require_train
from fastode.train.loader import ImageModule
from fastode.train.module import schedule
from fastode.train.objective import PIXEL_VARIANCE, objective


def test_settings_are_kept_in_a_file(tmp_path):
    config = TrainConfig(model="vae", data="mnist", data_dir="somewhere", lr=1e-4, hidden=3)
    config.save(tmp_path)
    assert TrainConfig.load(tmp_path) == config
    assert (TrainConfig().n_epochs, config.n_epochs, TrainConfig(epochs=3).n_epochs) == (80, 20, 3)


def test_loss_is_the_formula():
    logits, x, kl = torch.randn(4, 1, 8, 8), torch.rand(4, 1, 8, 8), torch.rand(4)
    y = torch.sigmoid(logits)
    bce = -(x * y.log() + (1 - x) * (1 - y).log()).mean()
    mse = (x - y).square().mean()
    plain = ModelOutput(logits, torch.zeros(4, 2))
    torch.testing.assert_close(objective(plain, x, "bce", 7.0), bce)
    torch.testing.assert_close(objective(plain, x, "mse", 7.0), mse)
    vae = ModelOutput(logits, torch.zeros(4, 2), kl=kl)
    torch.testing.assert_close(objective(vae, x, "bce", 0.5), bce + 0.5 * kl.mean() / 64)
    # Gaussian pixels: the negative log-likelihood of an image is (squared error) / (2 variance) up to a constant.
    elbo = ((x - y).square().sum((1, 2, 3)) / (2 * PIXEL_VARIANCE) + 0.5 * kl).mean()
    torch.testing.assert_close(objective(vae, x, "mse", 0.5), elbo * 2 * PIXEL_VARIANCE / 64)


def test_learning_rate_rises_and_falls():
    rates = [schedule(step, 200) for step in range(220)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[105] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert all(a > b for a, b in pairwise(rates[10:200]))
    assert rates[200:] == pytest.approx([0.01] * 20)
    assert all(0 < schedule(step, 1) <= 1 for step in range(3))


def test_batches_hold_every_image_once_in_an_order_of_seed_and_epoch():
    data = load_data("digits", limit=100)

    def epoch(seed: int, number: int) -> list[torch.Tensor]:
        loader = ImageModule(data, 16, seed).train_dataloader()
        loader.sampler.set_epoch(number)
        return list(loader)

    first, again, later, other = epoch(0, 0), epoch(0, 0), epoch(0, 1), epoch(1, 0)
    assert [len(x) for x in first] == [16] * 4 + [8]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for batches in (later, other):
        assert not torch.equal(batches[0], first[0])
    for batches in (first, later, other):
        rows = torch.cat(batches).flatten(1)
        expected = data.train.pixels.flatten(1) / 255
        assert sorted(rows.tolist()) == sorted(expected.tolist())
    validation = torch.cat(list(ImageModule(data, 3, 0).val_dataloader()))
    assert torch.equal(validation, data.val.pixels / 255)


def test_missing_packages_are_named(monkeypatch):
    require_train()
    monkeypatch.setattr("fastode.train.extra.find_spec", lambda name: None if name in ("PIL", "sklearn") else object())
    with pytest.raises(
        ImportError, match=r"missing pillow, scikit-learn: install with  pip install 'fastode\[train\]'"
    ):
        require_train()
    require_train(*(name for name in PACKAGES if name not in ("PIL", "sklearn")))
