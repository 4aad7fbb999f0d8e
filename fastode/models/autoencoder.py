"""A plain convolutional autoencoder: the baseline for AutoencODE."""

from torch import Tensor

from fastode.models.base import ImageModel, ModelOutput


class Autoencoder(ImageModel):
    """Image to code by `ConvEncoder`, code to image by `ConvDecoder`; nothing in between.

    Args:
        channels: 1 or 3.
        image_size: side of the images, or (height, width); at least 8.
        code_size: length of the code.
        width: channels of the first convolution; they double at every halving, up to 8 times.
    """

    name = "ae"

    def __init__(
        self, channels: int = 1, image_size: int | tuple[int, int] = 28, code_size: int = 16, width: int = 16
    ) -> None:
        super().__init__(
            {"channels": channels, "code_size": code_size, "width": width},
            channels=channels,
            image_size=image_size,
            code_size=code_size,
            width=width,
            encoder_features=code_size,
            decoder_features=code_size,
        )

    def encode(self, x: Tensor) -> Tensor:
        self.check_images(x)
        codes: Tensor = self.encoder(x)
        return codes

    def decode_logits(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        logits: Tensor = self.decoder(codes)
        return logits

    def outputs(self, x: Tensor) -> ModelOutput:
        codes = self.encode(x)
        return ModelOutput(self.decode_logits(codes), codes)
