"""Everything that a training run is made from, as plain data that goes into its folder and its checkpoints."""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastode.models import VAE, AutoencODE, Autoencoder, ImageModel

CONFIG_FILE = "config.json"
MODELS = ("autoencode", "ae", "vae")
LOSSES = ("bce", "mse")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
DEFAULT_EPOCHS = {"digits": 60, "mnist": 20, "fashion-mnist": 20, "cifar10": 20, "folder": 30}

# What may differ between a run and its resumption: the rest decides what is being trained.
RESUMABLE = frozenset(
    {"accelerator", "data_dir", "devices", "early_stop", "epochs", "out", "precision", "progress", "strategy"}
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of ``fastode train``; the fields are its options (``fastode train --help`` explains them).

    Raises:
        ValueError: settings out of range.
    """

    model: str = "autoencode"
    data: str = "digits"
    data_dir: str | None = None
    limit: int | None = None
    image_size: int | None = None
    channels: int | None = None
    code_size: int = 16
    width: int = 16
    state_dim: int | None = None
    hidden: int | None = None
    activation: str = "tanh"
    horizon: float = 4.0
    start: str = "learned"
    method: str = "dopri5"
    rtol: float = 1e-2
    atol: float = 1e-3
    loss: str = "bce"
    beta: float = 1.0
    epochs: int | None = None
    batch_size: int = 64
    lr: float = 6e-3
    weight_decay: float = 1e-4
    early_stop: int | None = None
    seed: int = 0
    precision: str = "32"
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    out: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name, known in (("model", MODELS), ("loss", LOSSES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: expected one of {', '.join(known)}")
        for name in ("epochs", "batch_size", "early_stop", "limit", "image_size", "code_size", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2^32 - 1, got {self.seed}")
        if not re.fullmatch(r"auto|-1|\d+(,\d+)*,?", str(self.devices)):
            raise ValueError(f"devices must be 'auto', a number such as 2, or a list such as 0,1; got {self.devices!r}")
        for name in ("lr", "rtol", "atol", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("beta", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def n_epochs(self) -> int:
        """``epochs``, or the data set's default."""
        return DEFAULT_EPOCHS[self.data] if self.epochs is None else self.epochs

    def save(self, folder: Path) -> None:
        """Write `CONFIG_FILE` into ``folder``."""
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "TrainConfig":
        """Read what `save` wrote; ValueError if that is not there or not whole."""
        file = folder / CONFIG_FILE
        try:
            return cls(**json.loads(file.read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"cannot read the settings of a run from {file}: {error}") from error

    def changed(self, **changes: Any) -> "TrainConfig":
        """The settings to resume with.

        Raises:
            ValueError: a change of something that the checkpoint was trained with.
        """
        for name, value in changes.items():
            if name not in RESUMABLE and value != getattr(self, name):
                raise ValueError(
                    f"the run to resume has {name} = {getattr(self, name)!r}, not {value!r}: leave the option out, or "
                    "start a new run"
                )
        return TrainConfig(**{**{f.name: getattr(self, f.name) for f in fields(self)}, **changes})


def build_model(config: TrainConfig, image_shape: tuple[int, int, int]) -> ImageModel:
    """The untrained model that ``config`` asks for, for images of shape (channels, height, width).

    Raises:
        ValueError: its parameters, their gradients and the optimizer's two moments would not fit into memory.
    """
    sizes = {name: getattr(config, name) for name in ("width", "code_size", "state_dim", "hidden")}
    text = ", ".join(f"{name}={value}" for name, value in sizes.items() if value is not None)
    if any(value is not None and value > 2**40 for value in sizes.values()):  # torch cannot count so far
        raise ValueError(f"a model with {text} fits into no memory")
    try:
        with torch.device("meta"):
            needed = 4 * sum(p.numel() * p.element_size() for p in _make(config, image_shape).parameters())
    except (RuntimeError, OverflowError, TypeError) as error:  # so many numbers cannot be counted
        if isinstance(error, TypeError) and "verflow" not in str(error):
            raise
        raise ValueError(f"a model with {text} fits into no memory") from error
    available = free_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"a model with {text} needs {needed / 1e9:.3g} GB of memory to be trained, "
            f"{available / 1e9:.3g} GB are free"
        )
    return _make(config, image_shape)


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine, None if that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _make(config: TrainConfig, image_shape: tuple[int, int, int]) -> ImageModel:
    channels, *size = image_shape
    common: dict[str, Any] = {
        "channels": channels,
        "image_size": (size[0], size[1]),
        "code_size": config.code_size,
        "width": config.width,
    }
    if config.model == "ae":
        return Autoencoder(**common)
    if config.model == "vae":
        return VAE(**common)
    return AutoencODE(
        **common,
        state_dim=config.state_dim,
        hidden=config.hidden,
        activation=config.activation,
        horizon=config.horizon,
        start=config.start,
        method=config.method,
        rtol=config.rtol,
        atol=config.atol,
    )
