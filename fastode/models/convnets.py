"""The convolutional encoder and decoder that every image model here shares."""

import math

import torch
from torch import Tensor, nn

MIN_SIZE = 8
MAX_FACTOR = 8  # channels double at every halving, up to this multiple of `width`
MAX_GROUPS = 4  # of a group normalisation
# With N(0, gain^2 / fan_in) weights this gain about keeps the variance through a SiLU. Torch's own initialisation lets
# it shrink at every layer, and a code that hardly differs between images leaves an ODE next to nothing to start from.
SILU_GAIN = 1.6


def stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Spatial sizes from the image to the smallest feature map: halved, rounding up, while both sides stay >= 4."""
    sizes = [(height, width)]
    while True:
        h, w = (sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2
        if min(h, w) < 4:
            return sizes
        sizes.append((h, w))


def check_image_shape(channels: int, image_size: int | tuple[int, int]) -> tuple[int, int, int]:
    """(channels, height, width) from the arguments of a model, checked."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    if height < MIN_SIZE or width < MIN_SIZE:
        raise ValueError(f"image_size must be at least {MIN_SIZE} on both sides, got {image_size!r}")
    return channels, height, width


@torch.no_grad()
def _init(module: nn.Module) -> None:
    """Weights of variance gain^2 / fan_in (the fan-in that an output pixel really has), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            fan_in = layer.weight.shape[0] * layer.weight[0, 0].numel() / math.prod(layer.stride)
        elif isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
        else:
            continue
        nn.init.normal_(layer.weight, std=SILU_GAIN * fan_in**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def init_linear(layer: nn.Linear) -> None:
    """Weights of variance 1 / fan_in, bias 0."""
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    nn.init.zeros_(layer.bias)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, MAX_GROUPS), channels)


class ConvEncoder(nn.Module):
    """Images (n, channels, height, width) with values in [0, 1] to vectors (n, out_features).

    A stride-1 convolution, then stride-2 convolutions down to a side of 4 to 7 pixels, each with group normalisation
    (which, unlike batch normalisation, keeps the samples of a batch independent), then one linear layer.
    """

    def __init__(self, shape: tuple[int, int, int], out_features: int, width: int) -> None:
        super().__init__()
        channels, height, image_width = shape
        sizes = stage_sizes(height, image_width)
        layers = [nn.Conv2d(channels, width, 3, padding=1), _norm(width), nn.SiLU()]
        n = width
        for i in range(1, len(sizes)):
            n_out = width * min(2**i, MAX_FACTOR)
            layers += [nn.Conv2d(n, n_out, 3, stride=2, padding=1), _norm(n_out), nn.SiLU()]
            n = n_out
        self.conv = nn.Sequential(*layers)
        self.linear = nn.Linear(n * sizes[-1][0] * sizes[-1][1], out_features)
        _init(self.conv)
        init_linear(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.conv(2.0 * x - 1.0).flatten(1))
        return out


class ConvDecoder(nn.Module):
    """Vectors (n, in_features) to image logits (n, channels, height, width): `ConvEncoder` mirrored.

    A stride-2 transposed convolution of kernel 4 doubles a side exactly; where the encoder rounded an odd side up,
    kernel 3 gives the odd side back, so that every image size is met without cropping.
    """

    def __init__(self, shape: tuple[int, int, int], in_features: int, width: int) -> None:
        super().__init__()
        channels, height, image_width = shape
        sizes = stage_sizes(height, image_width)
        n = width * min(2 ** (len(sizes) - 1), MAX_FACTOR)
        self.start = (n, *sizes[-1])
        self.linear = nn.Linear(in_features, n * sizes[-1][0] * sizes[-1][1])
        layers: list[nn.Module] = [nn.SiLU()]
        for i in reversed(range(len(sizes) - 1)):
            n_out = width * min(2**i, MAX_FACTOR)
            kernel = (4 - sizes[i][0] % 2, 4 - sizes[i][1] % 2)
            layers += [nn.ConvTranspose2d(n, n_out, kernel, stride=2, padding=1), nn.SiLU()]
            n = n_out
        layers.append(nn.ConvTranspose2d(n, channels, 3, padding=1))
        self.conv = nn.Sequential(*layers)
        _init(self.conv)
        init_linear(self.linear)

    def forward(self, y: Tensor) -> Tensor:
        out: Tensor = self.conv(self.linear(y).unflatten(1, torch.Size(self.start)))
        return out
