"""How good reconstructions and codes are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastode.models import ImageModel
from fastode.train.data import Images

EVAL_BATCH = 500
# A Gaussian window of sigma 1.5 is 11 pixels wide; images below twice that leave it no room.
SSIM_SIGMA = 1.5
SSIM_SIGMA_SMALL = 0.5
SSIM_SMALL_SIDE = 22


@dataclass(frozen=True)
class Reconstruction:
    """Errors of reconstructions of images with values in [0, 1].

    Attributes:
        mse: mean squared error over all pixels.
        psnr: peak signal-to-noise ratio in dB, the mean of that of every image.
        ssim: structural similarity, the mean over images.
        ssim_sigma: standard deviation of its Gaussian window in pixels.
    """

    mse: float
    psnr: float
    ssim: float
    ssim_sigma: float


def ssim_sigma(height: int, width: int) -> float:
    """The window to measure structural similarity with: 1.5 pixels as usual, 0.5 on images too small for that."""
    return SSIM_SIGMA if min(height, width) >= SSIM_SMALL_SIDE else SSIM_SIGMA_SMALL


def reconstruction_metrics(images: Tensor, reconstructions: Tensor) -> Reconstruction:
    """Compare two float tensors (n, channels, height, width), values in [0, 1]."""
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
    from torchmetrics.regression import MeanSquaredError

    sigma = ssim_sigma(*images.shape[-2:])
    # One process reports on all images: nothing to gather from the others of a distributed run, which have ended.
    alone: dict[str, Any] = {"sync_on_compute": False}
    mse = MeanSquaredError(**alone)
    psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), **alone)
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0, sigma=sigma, **alone)
    for start in range(0, len(images), EVAL_BATCH):
        x, y = images[start : start + EVAL_BATCH], reconstructions[start : start + EVAL_BATCH]
        for metric in (mse, psnr, ssim):
            metric.update(y.contiguous(), x.contiguous())
    values = [torch.as_tensor(metric.compute()).item() for metric in (mse, psnr, ssim)]
    return Reconstruction(values[0], values[1], values[2], sigma)


@torch.no_grad()
def encode_all(model: ImageModel, images: Images, device: torch.device | str = "cpu") -> Tensor:
    """Codes (n, code_size), float32 on the CPU."""
    return torch.cat([model.encode(x.to(device)).float().cpu() for x in images.batches(EVAL_BATCH)])


def clustering_accuracy(codes: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Share of codes in the right class when k-means clusters, as many as there are classes, are named at best.

    The names are assigned one to one so that most codes are right (Hungarian method). The codes are standardised.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans

    classes, target = np.unique(labels.numpy(), return_inverse=True)
    clusters = KMeans(len(classes), n_init=10, random_state=seed).fit_predict(_standardise(codes, codes))
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (clusters, target), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(target))


def linear_probe(train_codes: Tensor, train_labels: Tensor, codes: Tensor, labels: Tensor) -> float:
    """Accuracy on ``codes`` of a logistic regression fitted to ``train_codes``; both standardised by the latter."""
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(max_iter=1000)
    probe.fit(_standardise(train_codes, train_codes), train_labels.numpy())
    return float(probe.score(_standardise(codes, train_codes), labels.numpy()))


def _standardise(codes: Tensor, reference: Tensor) -> np.ndarray:
    mean, std = reference.mean(0), reference.std(0, correction=min(1, len(reference) - 1)).clamp_min(1e-8)
    return ((codes - mean) / std).numpy()
