"""What the image models have in common: their outputs, their input checks, saving and loading."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fastode.models.convnets import ConvDecoder, ConvEncoder, check_image_shape

FORMAT = "fastode.model/1"
MODEL_FILE = "model.pt"

Model = TypeVar("Model", bound="ImageModel")


@dataclass
class ModelOutput:
    """What one pass through an image model gives.

    Attributes:
        logits: (n, channels, height, width), the reconstruction before the sigmoid.
        codes: (n, code_size).
        stats: solver statistics (`fastode.Solution.stats`) of the solve in this pass; None for models without one.
        kl: (n,) divergence of the approximate posterior from the prior in nats; None for models without one.
    """

    logits: Tensor
    codes: Tensor
    stats: Any = None
    kl: Tensor | None = None

    @property
    def reconstruction(self) -> Tensor:
        """Images (n, channels, height, width) with values in [0, 1]."""
        return torch.sigmoid(self.logits)


class ImageModel(nn.Module):
    """Base of the models that map an image to a code and back.

    A subclass sets ``name``, keeps the arguments that it was made with in ``config`` (plain numbers, strings, lists and
    dicts only, so that a saved file can be read without executing code), and defines `encode`, `decode_logits` and
    `outputs`.
    """

    name: ClassVar[str]
    registry: ClassVar[dict[str, type["ImageModel"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ImageModel.registry[cls.name] = cls

    def __init__(
        self,
        config: dict[str, Any],
        *,
        channels: int,
        image_size: int | tuple[int, int],
        code_size: int,
        width: int,
        encoder_features: int,
        decoder_features: int,
    ) -> None:
        super().__init__()
        for key, value in (("code_size", code_size), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key} must be a positive integer, got {value!r}")
        self.image_shape = check_image_shape(channels, image_size)
        self.code_size = code_size
        self.config = {**config, "image_size": list(self.image_shape[1:])}
        self.encoder = ConvEncoder(self.image_shape, encoder_features, width)
        self.decoder = ConvDecoder(self.image_shape, decoder_features, width)

    def outputs(self, x: Tensor) -> ModelOutput:
        """One pass over images ``x`` (n, channels, height, width) with values in [0, 1]."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Codes (n, code_size) of the images ``x`` (n, channels, height, width)."""
        raise NotImplementedError

    def decode_logits(self, codes: Tensor) -> Tensor:
        """Image logits (n, channels, height, width) of ``codes`` (n, code_size)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (n, channels, height, width), values in [0, 1], of the images ``x`` of the same shape."""
        return self.outputs(x).reconstruction

    def decode(self, codes: Tensor) -> Tensor:
        """Images (n, channels, height, width), values in [0, 1], of ``codes`` (n, code_size)."""
        return torch.sigmoid(self.decode_logits(codes))

    def check_images(self, x: Tensor) -> None:
        """ValueError or TypeError unless ``x`` is a floating-point batch of this model's images."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"expected images of shape (n, {expected}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"expected floating-point images with values in [0, 1], got {x.dtype}")

    def check_codes(self, codes: Tensor) -> None:
        """ValueError unless ``codes`` is (n, code_size)."""
        if codes.ndim != 2 or codes.shape[1] != self.code_size:
            raise ValueError(f"expected codes of shape (n, {self.code_size}), got {tuple(codes.shape)}")

    def n_parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def description(self) -> dict[str, Any]:
        """Plain data from which `build` makes an untrained model of the same form."""
        return {"format": FORMAT, "model": self.name, "config": self.config}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file that `load` reads back."""
        torch.save({**self.description(), "state_dict": self.state_dict()}, path)

    @classmethod
    def load(cls: type[Model], path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> Model:
        """Read a trained model, in evaluation mode, without executing code from the file.

        Args:
            path: a file written by `save`, a run directory of ``fastode train`` (its ``model.pt`` is read), or a
                checkpoint that such a run wrote.
            map_location: device of the loaded parameters.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no fastode model, is damaged, or holds another kind of model.
        """
        model = load_model(path, map_location)
        if not isinstance(model, cls):
            raise ValueError(f"{os.fspath(path)} holds the model {type(model).__name__}, not {cls.__name__}")
        return model


def build(description: Mapping[str, Any]) -> ImageModel:
    """An untrained model from what `ImageModel.description` gave."""
    if description.get("format") != FORMAT:
        raise ValueError(f"unknown model format {description.get('format')!r}: expected {FORMAT!r}")
    name = description["model"]
    if name not in ImageModel.registry:
        raise ValueError(f"unknown model {name!r}: expected one of {', '.join(ImageModel.registry)}")
    return ImageModel.registry[name](**description["config"])


def why_unreadable(error: Exception) -> str:
    """Why ``torch.load(..., weights_only=True)`` failed, in one line and without its advice to run what a file says."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "it holds something else than tensors and plain data, and nothing in it was run"
    return (str(error) or type(error).__name__).splitlines()[0]


def load_model(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> ImageModel:
    """`ImageModel.load` for a model of any kind."""
    file = Path(path)
    if file.is_dir():
        file = file / MODEL_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no model at {file}: expected a model file, a checkpoint or a run directory")
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises many types; all mean that this is not a file of ours
        raise ValueError(f"{file} is damaged or not a fastode model: {why_unreadable(error)}") from None
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if weights is None:
        raise ValueError(f"{file} is not a fastode model: it holds no state_dict")
    if "fastode" in content:  # a training checkpoint: the model is one attribute of the training module
        content = content["fastode"]
        weights = {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
    try:
        model = build(content)
        dtypes = {value.dtype for value in weights.values() if value.is_floating_point()}
        if len(dtypes) == 1:
            model.to(*dtypes)
        model.load_state_dict(weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is not a fastode model of this version: {error}") from error
    return model.to(map_location).eval()
