"""A variational autoencoder (Kingma and Welling, arXiv 1312.6114): the second baseline for AutoencODE."""

import torch
from torch import Tensor

from fastode.models.base import ImageModel, ModelOutput


class VAE(ImageModel):
    """Gaussian posterior with diagonal covariance, standard normal prior.

    `encode` gives the posterior mean. `outputs` decodes a sample of the posterior in training mode and its mean in
    evaluation mode, and returns the Kullback-Leibler divergence of every sample.

    Args:
        channels: 1 or 3.
        image_size: side of the images, or (height, width); at least 8.
        code_size: length of the code.
        width: channels of the first convolution; they double at every halving, up to 8 times.
    """

    name = "vae"

    def __init__(
        self, channels: int = 1, image_size: int | tuple[int, int] = 28, code_size: int = 16, width: int = 16
    ) -> None:
        super().__init__(
            {"channels": channels, "code_size": code_size, "width": width},
            channels=channels,
            image_size=image_size,
            code_size=code_size,
            width=width,
            encoder_features=2 * code_size,
            decoder_features=code_size,
        )

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, each (n, code_size), for the images ``x``."""
        self.check_images(x)
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        # exp() overflows in half precision; the clamp keeps one bad batch from turning every weight into NaN.
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return mean.to(dtype), log_var.to(dtype).clamp(-20.0, 20.0)

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode_logits(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        logits: Tensor = self.decoder(codes)
        return logits

    def outputs(self, x: Tensor) -> ModelOutput:
        mean, log_var = self.posterior(x)
        codes = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean) if self.training else mean
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=1)
        return ModelOutput(self.decode_logits(codes), mean, kl=kl)
