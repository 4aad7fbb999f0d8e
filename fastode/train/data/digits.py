"""The 1797 handwritten digits (8x8) that come with scikit-learn."""

import numpy as np
import torch

from fastode.train.data.images import Images

CLASSES = [str(i) for i in range(10)]


def read() -> tuple[Images, str]:
    """(images, source). Nothing is downloaded."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    images = Images(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(digits.target.astype(np.int64)))
    return images, "the digits of scikit-learn"
