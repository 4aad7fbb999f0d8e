"""The start of training: codes that differ, and reconstructions that are neither flat nor saturated."""

import pytest
import torch

from fastode.models import AutoencODE, Autoencoder
from fastode.models.convnets import ConvEncoder


def strokes(n: int, channels: int, size: int) -> torch.Tensor:
    """Images that differ in large shapes, not only pixel by pixel: random 4x4 patterns, enlarged."""
    coarse = (torch.rand(n, channels, 4, 4) > 0.5).float()
    return torch.nn.functional.interpolate(coarse, size=(size, size))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_codes_of_different_images_differ_at_the_start(channels, size):
    spread = ConvEncoder((channels, size, size), 16, 16)(strokes(64, channels, size)).std(0).mean().item()
    assert 0.2 < spread < 2.0


@pytest.mark.parametrize("cls", [AutoencODE, Autoencoder])
@pytest.mark.parametrize("size", [8, 32])
def test_reconstructions_differ_and_are_not_saturated_at_the_start(cls, size):
    with torch.no_grad():
        logits = cls(1, size).outputs(strokes(64, 1, size)).logits
    assert logits.std(0).mean() > 0.1
    assert logits.abs().mean() < 4.0
