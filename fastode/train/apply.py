"""Apply a trained model to image files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastode.models import ImageModel
from fastode.train.data import DataError, as_float
from fastode.train.data.folder import image_files, read_image

BATCH = 256


def collect(paths: Sequence[Path]) -> list[Path]:
    """Image files among ``paths``, and those in and below the folders among them, sorted within each folder.

    Raises:
        DataError: a path that does not exist, or no images at all.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            folders = [path, *sorted(p for p in path.rglob("*") if p.is_dir())]
            files += [file for folder in folders for file in image_files(folder)]
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"no such file or folder: {path}")
    if not files:
        raise DataError(f"no images in {', '.join(map(str, paths))}")
    return files


def read_all(model: ImageModel, files: Sequence[Path]) -> Tensor:
    """The images as ``model`` takes them: (n, channels, height, width) uint8, converted and resized."""
    channels, *size = model.image_shape
    return torch.stack([read_image(file, channels, (size[0], size[1])) for file in files])


def conversion(model: ImageModel) -> str:
    """What `read_all` does to every image, in words."""
    channels, height, width = model.image_shape
    return f"converted to {'gray' if channels == 1 else 'RGB'} and resized to {height}x{width}, the model's input"


@torch.no_grad()
def encode(model: ImageModel, pixels: Tensor) -> np.ndarray:
    """Codes (n, code_size) float32 of uint8 images."""
    return torch.cat([model.encode(as_float(part)) for part in pixels.split(BATCH)]).float().numpy()


@torch.no_grad()
def reconstruct(model: ImageModel, pixels: Tensor) -> Tensor:
    """Reconstructions (n, channels, height, width) uint8 of uint8 images."""
    parts = [model(as_float(part)).float() for part in pixels.split(BATCH)]
    return torch.cat(parts).mul(255.0).round().clamp(0, 255).to(torch.uint8)


def save_codes(path: Path, codes: np.ndarray, files: Sequence[Path]) -> None:
    """Write codes and file names to ``path``: .npz (arrays "codes" and "files") or .csv (a row per image).

    Raises:
        ValueError: another ending.
    """
    names = [str(file) for file in files]
    if path.suffix == ".npz":
        np.savez(path, codes=codes, files=np.array(names))
    elif path.suffix == ".csv":
        import csv

        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", *(f"z{i}" for i in range(codes.shape[1]))])
            for name, code in zip(names, codes.tolist(), strict=True):
                writer.writerow([name, *code])
    else:
        raise ValueError(f"--out must end in .npz or .csv, got {path.name!r}")


def save_images(folder: Path, pixels: Tensor, files: Sequence[Path]) -> list[Path]:
    """Write uint8 images as PNG files named after ``files``; equal names are numbered."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for image, file in zip(pixels, files, strict=True):
        target, count = folder / f"{file.stem}.png", 1
        while target in written:
            count += 1
            target = folder / f"{file.stem}-{count}.png"
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(target)
        written.append(target)
    return written
