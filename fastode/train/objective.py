"""The loss that all models are trained with."""

import torch.nn.functional as F
from torch import Tensor

from fastode.models import ModelOutput

# Variance of the pixel noise that turns a squared error into a Gaussian likelihood beside a VAE's divergence.
PIXEL_VARIANCE = 0.01


def objective(output: ModelOutput, x: Tensor, loss: str, beta: float) -> Tensor:
    """Mean loss per pixel, a scalar.

    "bce" is the cross entropy of every pixel, its value in [0, 1] taken as a probability; "mse" is the squared error
    of the reconstruction. A VAE's loss is its negative evidence lower bound with ``beta`` times the divergence; with
    "mse" it is multiplied by 2 `PIXEL_VARIANCE`, so that its first term is the squared error too.
    """
    logits = output.logits.float()
    if loss == "bce":
        value = F.binary_cross_entropy_with_logits(logits, x)
        weight = beta
    else:
        value = F.mse_loss(logits.sigmoid(), x)
        weight = beta * 2.0 * PIXEL_VARIANCE
    return value if output.kl is None else value + weight * output.kl.mean() / x[0].numel()
