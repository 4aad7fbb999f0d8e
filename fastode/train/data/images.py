"""Labelled images in memory, and how they are split."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


class DataError(Exception):
    """A data set cannot be read; the message names the file and says where to get the data."""


@dataclass(frozen=True)
class Images:
    """A set of images of one shape.

    Attributes:
        pixels: (n, channels, height, width) uint8.
        labels: (n,) int64 class indices, or None where the images have no classes.
    """

    pixels: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != torch.uint8:
            raise ValueError(f"expected uint8 pixels (n, c, h, w), got {self.pixels.dtype} {tuple(self.pixels.shape)}")
        if self.labels is not None and self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(f"{self.pixels.shape[0]} images but labels of shape {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __getitem__(self, index: Tensor | slice) -> "Images":
        return Images(self.pixels[index], None if self.labels is None else self.labels[index])

    def batches(self, size: int) -> Iterator[Tensor]:
        """Float32 images in [0, 1], ``size`` at a time, in order."""
        for start in range(0, len(self), size):
            yield as_float(self.pixels[start : start + size])


def as_float(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels.float() / 255.0


@dataclass(frozen=True)
class ImageData:
    """A data set, split: ``train`` is learned from, ``val`` picks the checkpoint, ``test`` is held out for the report.

    ``source`` says in words what was read and how it was split.
    """

    name: str
    train: Images
    val: Images
    test: Images
    classes: list[str] = field(default_factory=list)
    source: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.train.pixels.shape[1:]
        return c, h, w


HOLDOUT = 0.2
VALIDATION = 0.1


def pick(n: int, size: int, seed: int) -> Tensor:
    """``size`` of the indices 0..n-1 in random order, the same for the same seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:size]


def sizes(n_pool: int, n_test: int, limit: int | None) -> tuple[int, int]:
    """How many images of the pool and of the data set's own test part to use under ``limit``, a cap on their sum."""
    if limit is None or limit >= n_pool + n_test:
        return n_pool, n_test
    use_test = min(n_test, round(limit * HOLDOUT))
    return min(n_pool, limit - use_test), use_test


def split(
    name: str, pool: Images, test: Images | None, *, seed: int, limit: int | None, classes: list[str], source: str
) -> ImageData:
    """Split a data set at random by ``seed``.

    A fifth of the images is held out, unless the data set has its own ``test`` part; a tenth of the rest validates.
    With ``limit`` at most that many images are used in all.

    Raises:
        DataError: fewer images than the parts need.
    """
    n_pool, n_test = sizes(len(pool), 0 if test is None else len(test), limit)
    pool = pool[pick(len(pool), n_pool, seed)]
    if test is None:
        n_holdout = max(1, round(len(pool) * HOLDOUT))
        test, pool = pool[:n_holdout], pool[n_holdout:]
        source += f"; held out {n_holdout} at random (seed {seed})"
    else:
        test = test[pick(len(test), n_test, seed)]
        source += f"; its own test part held out ({len(test)} images)"
    n_val = max(1, round(len(pool) * VALIDATION))
    if len(pool) - n_val < 1 or len(test) < 1:
        raise DataError(f"{name}: too few images to split into training, validation and held-out parts ({source})")
    return ImageData(name, pool[n_val:], pool[:n_val], test, classes, source)


def with_source(data: ImageData, note: str) -> ImageData:
    """``data`` with a remark added to where it comes from."""
    return replace(data, source=f"{data.source}; {note}")
