"""Any folder of images: one subfolder per class, optionally below train/ and test/."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastode.train.data.images import DataError, Images, sizes

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_NAMES = ("test", "val", "valid", "validation")
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
MAX_NATIVE_SIZE = 128


def image_files(folder: Path) -> list[Path]:
    """The image files directly in ``folder``, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES and p.name[0] != ".")


def read_image(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """One image as uint8 (channels, height, width), converted to gray or RGB and resized to ``size`` (height, width).

    Raises:
        DataError: the file is no image that Pillow reads, or is damaged.
    """
    try:
        with Image.open(path) as file:
            image = _to_mode(file, "L" if channels == 1 else "RGB")
            if image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)
            array = np.array(image, np.uint8)
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
    return torch.from_numpy(array).unsqueeze(0) if channels == 1 else torch.from_numpy(array).permute(2, 0, 1)


_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""


def _deep_grays(image: Image.Image) -> Image.Image:
    """An image of more than 8 bits as 8 bits: black and white are those of its format, not of what it contains.

    Raises:
        ValueError: a format whose white is not known.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bits, kind = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
    values = np.array(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min(initial=0.0) >= 0.0 and values.max(initial=0.0) <= 1.0):
            raise ValueError("it has floating-point values that are not between 0, black, and 1, white: convert it")
        white = 1.0
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM", "TIFF")):
        if (bits, kind) != (16, 1):
            raise ValueError(f"it has grays of {bits} bits whose black and white are not known: convert it")
        white = 65535.0
    else:
        raise ValueError(f"it has grays of the kind {image.mode!r} whose black and white are not known: convert it")
    levels = (values * (255.0 / white)).round().clip(0.0, 255.0).astype(np.uint8)
    return Image.fromarray(255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode[0] in "IF":
        image = _deep_grays(image)
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert(mode)


def _list(folder: Path) -> tuple[list[Path], list[str]]:
    """(files, class name of each) below ``folder``; the class names are empty where it has no subfolders."""
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    files, names = [], []
    for sub in subfolders:
        found = image_files(sub)
        files += found
        names += [sub.name] * len(found)
    return (files, names) if files else (image_files(folder), [])


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    try:
        with Image.open(path) as image:
            return (image.height, image.width), image.mode in GRAY_MODES
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def _read_all(files: list[Path], names: list[str], classes: list[str], channels: int, size: tuple[int, int]) -> Images:
    pixels = torch.stack([read_image(path, channels, size) for path in files])
    index = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([index[name] for name in names], dtype=torch.int64) if names and classes else None
    return Images(pixels, labels)


def _sample(files: list[Path], names: list[str], n: int, seed: int) -> tuple[list[Path], list[str]]:
    if n >= len(files):
        return files, names
    chosen = sorted(random.Random(seed).sample(range(len(files)), n))
    return [files[i] for i in chosen], [names[i] for i in chosen] if names else []


def read(
    folder: Path, *, image_size: int | None, channels: int | None, limit: int | None, seed: int
) -> tuple[Images, Images | None, list[str], str]:
    """(pool, test part or None, class names, source) of the images below ``folder``.

    Args:
        folder: holds train/ (and test/ or val/), or the class folders themselves, or images without classes.
        image_size: side of the square that images are resized to; None keeps them, if all have one size.
        channels: 1 or 3; None takes 1 if all images are gray, else 3.
        limit: read at most this many images.
        seed: chooses them.

    Raises:
        DataError: no images, an unreadable image, or different sizes without ``image_size``.
    """
    if not folder.is_dir():
        raise DataError(f"no folder of images at {folder}: expected one subfolder per class")
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    test_folder = next(
        (folder / name for name in TEST_NAMES if train_folder != folder and (folder / name).is_dir()), None
    )
    files, names = _list(train_folder)
    test_files, test_names = _list(test_folder) if test_folder else ([], [])
    if not files:
        raise DataError(f"no images below {train_folder}: expected one subfolder per class with {', '.join(SUFFIXES)}")
    n_pool, n_test = sizes(len(files), len(test_files), limit)
    files, names = _sample(files, names, n_pool, seed)
    test_files, test_names = _sample(test_files, test_names, n_test, seed)
    classes = sorted(set(names))
    unknown = sorted(set(test_names) - set(classes))
    if unknown and names:
        raise DataError(f"{test_folder} has classes that {train_folder} has not: {', '.join(unknown)}")

    headers = [_header(path) for path in [*files, *test_files]]
    channels = channels or (1 if all(gray for _, gray in headers) else 3)
    found = sorted({size for size, _ in headers})
    if image_size is not None:
        size = (image_size, image_size)
    elif len(found) == 1 and max(found[0]) <= MAX_NATIVE_SIZE:
        size = found[0]
    else:
        seen = ", ".join(f"{h}x{w}" for h, w in found[:3]) + (", ..." if len(found) > 3 else "")
        raise DataError(f"the images below {folder} have the sizes {seen}: give the side to resize to by --image-size")
    source = f"images from {folder}, {'gray' if channels == 1 else 'RGB'}"
    if found != [size]:
        source += f", resized to {size[0]}x{size[1]}"
    pool = _read_all(files, names, classes, channels, size)
    test = _read_all(test_files, test_names, classes, channels, size) if test_files else None
    return pool, test, classes, source
