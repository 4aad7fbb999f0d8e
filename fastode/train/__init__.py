"""Training of image models on PyTorch Lightning; needs the extra ``fastode[train]``."""

from fastode.train.extra import require_train

__all__ = ["require_train"]
