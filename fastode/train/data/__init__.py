"""Image data sets, read from the formats that they are published in, without downloads and without executing code."""

from pathlib import Path

from fastode.train.data.images import DataError, ImageData, Images, as_float, split

DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "folder")

__all__ = ["DATA_SETS", "DataError", "ImageData", "Images", "as_float", "load_data"]


def load_data(
    name: str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> ImageData:
    """Read the data set ``name`` and split it, the same way for the same ``seed``.

    Args:
        name: one of `DATA_SETS`.
        data_dir: where the files are; every data set but "digits" needs it.
        seed: of the split, and of the choice under ``limit``.
        limit: use at most this many images in all.
        image_size: for "folder" only: resize to this side.
        channels: for "folder" only: convert to 1 (gray) or 3 (RGB).

    Raises:
        DataError: files that are missing or damaged, with their names and where to get them.
        ValueError: an unknown name, or arguments that do not go together.
    """
    if name not in DATA_SETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(DATA_SETS)}")
    if name != "folder" and (image_size is not None or channels is not None):
        raise ValueError(
            f"the size and channels of {name} are fixed: --image-size and --channels are for --data folder"
        )
    if limit is not None and limit < 10:
        raise ValueError(f"limit must be at least 10, got {limit}")
    if name == "digits":
        from fastode.train.data import digits

        pool, source = digits.read()
        return split(name, pool, None, seed=seed, limit=limit, classes=digits.CLASSES, source=source)

    if data_dir is None:
        from fastode.train.data import cifar10, idx

        where = {**idx.WHERE, "cifar10": cifar10.WHERE}.get(name)
        raise DataError(f"--data {name} needs --data-dir PATH" + (f"; get the files from {where}" if where else ""))
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise DataError(f"--data-dir {path} does not exist")
    test: Images | None
    if name == "cifar10":
        from fastode.train.data import cifar10

        pool, test, source = cifar10.read(path)
        classes = cifar10.CLASSES
    elif name == "folder":
        from fastode.train.data import folder

        pool, test, classes, source = folder.read(
            path, image_size=image_size, channels=channels, limit=limit, seed=seed
        )
    else:
        from fastode.train.data import idx

        pool, test, source = idx.read(path, name)
        classes = idx.CLASSES[name]
    return split(name, pool, test, seed=seed, limit=limit, classes=classes, source=source)
