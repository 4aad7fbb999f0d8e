"""Metrics on cases whose value is known, and the loss that is trained with."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from fastode.models import ModelOutput
from fastode.train.metrics import clustering_accuracy, linear_probe, reconstruction_metrics, ssim_sigma
from fastode.train.module import schedule
from fastode.train.objective import PIXEL_VARIANCE, objective


def test_perfect_reconstructions():
    x = torch.rand(6, 1, 28, 28)
    result = reconstruction_metrics(x, x)
    assert result.mse == 0.0
    assert result.ssim == pytest.approx(1.0, abs=1e-5)


def test_errors_of_known_size():
    x = torch.full((2, 3, 8, 8), 0.5)
    y = x.clone()
    y[0] += 0.1
    y[1] += 0.01
    result = reconstruction_metrics(x, y)
    assert result.mse == pytest.approx((0.1**2 + 0.01**2) / 2, rel=1e-4)
    assert result.psnr == pytest.approx((20.0 + 40.0) / 2, rel=1e-3)  # the mean over images, not that of the mean error


@pytest.mark.parametrize("size", [8, 16, 28, 32])
def test_ssim_is_defined_for_every_size_and_falls_with_noise(size):
    x = torch.rand(4, 1, size, size)
    noise = torch.randn_like(x)
    values = [reconstruction_metrics(x, (x + s * noise).clamp(0, 1)).ssim for s in (0.0, 0.1, 0.5)]
    assert all(math.isfinite(v) for v in values)
    assert values[0] > values[1] > values[2]


def test_window_of_the_ssim_fits_the_image():
    assert ssim_sigma(28, 28) == 1.5
    assert ssim_sigma(28, 8) == ssim_sigma(8, 8) == 0.5


def test_metrics_do_not_depend_on_how_images_are_batched(monkeypatch):
    x, y = torch.rand(7, 1, 24, 24), torch.rand(7, 1, 24, 24)
    whole = reconstruction_metrics(x, y)
    monkeypatch.setattr("fastode.train.metrics.EVAL_BATCH", 3)
    parts = reconstruction_metrics(x, y)
    for name in ("mse", "psnr", "ssim"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def blobs(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clusters far apart, their labels not 0, 1, 2."""
    labels = torch.arange(n) % 3
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    return centres[labels] + torch.randn(n, 2), torch.tensor([7, 2, 5])[labels]


def test_separate_clusters_are_found_whatever_their_names():
    codes, labels = blobs()
    assert clustering_accuracy(codes, labels) == 1.0


def test_a_cluster_that_mixes_two_classes_counts_for_one():
    codes, labels = blobs(90)
    labels[labels == 5] = torch.tensor([5, 6]).repeat(15)
    expected = (30 + 30 + 15) / 90
    assert clustering_accuracy(codes, labels) == pytest.approx(expected, abs=0.12)
    assert clustering_accuracy(codes, labels) < 1.0


def test_clustering_of_noise_is_near_chance():
    accuracy = clustering_accuracy(torch.randn(600, 4), torch.arange(600) % 10)
    assert 0.1 <= accuracy < 0.22


def test_linear_probe():
    codes, labels = blobs()
    assert linear_probe(codes, labels, *blobs()) == 1.0
    assert linear_probe(torch.randn(300, 2), torch.arange(300) % 3, torch.randn(300, 2), torch.arange(300) % 3) < 0.5


def test_cross_entropy_and_squared_error():
    x, logits = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    output = ModelOutput(logits, torch.zeros(3, 2))
    torch.testing.assert_close(objective(output, x, "bce", 1.0), F.binary_cross_entropy(logits.sigmoid(), x))
    torch.testing.assert_close(objective(output, x, "mse", 1.0), (logits.sigmoid() - x).square().mean())


def test_loss_of_a_vae_is_the_negative_evidence_lower_bound_per_pixel():
    x, logits, kl = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([1.0, 2.0, 6.0])
    output = ModelOutput(logits, torch.zeros(3, 2), kl=kl)
    nll = F.binary_cross_entropy(logits.sigmoid(), x, reduction="sum") / 3
    torch.testing.assert_close(objective(output, x, "bce", 1.0), (nll + kl.mean()) / 16)
    torch.testing.assert_close(objective(output, x, "bce", 0.5), (nll + 0.5 * kl.mean()) / 16)
    gauss = (logits.sigmoid() - x).square().sum() / 3 / (2 * PIXEL_VARIANCE)
    torch.testing.assert_close(objective(output, x, "mse", 1.0), (gauss + kl.mean()) / 16 * 2 * PIXEL_VARIANCE)


def test_learning_rate_warms_up_and_falls_to_a_hundredth():
    factors = [schedule(step, 1000) for step in range(1001)]
    assert factors[0] == pytest.approx(1 / 50)
    assert factors[49] == 1.0
    assert max(factors) == 1.0
    assert all(a >= b for a, b in pairwise(factors[49:]))
    assert factors[1000] == pytest.approx(0.01)
    assert schedule(5000, 1000) == pytest.approx(0.01)  # beyond the end, should a run be made longer
    assert schedule(0, 1) == 1.0
