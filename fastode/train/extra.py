"""One clear message where the packages of the extra ``[train]`` are missing."""

from importlib.util import find_spec

# import name -> name on the package index
PACKAGES = {
    "lightning": "lightning",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "torchmetrics": "torchmetrics",
}


def require_train(*names: str) -> None:
    """ImportError naming the missing packages and how to install them, unless all are there.

    Args:
        names: import names out of `PACKAGES`; none means all of them.
    """
    missing = [PACKAGES[name] for name in (names or PACKAGES) if find_spec(name) is None]
    if missing:
        raise ImportError(f"missing {', '.join(missing)}: install with  pip install 'fastode[train]'")
