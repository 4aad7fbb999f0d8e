"""Ready-made vector fields for `fastode.solve`: plain `torch.nn.Module`s made of ordinary batched torch ops."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softplus": nn.functional.softplus,
    "silu": nn.functional.silu,
    "elu": nn.functional.elu,
    "gelu": nn.functional.gelu,
    "sin": torch.sin,
    "identity": lambda x: x,
}


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The pointwise function called ``name``; ValueError lists the known names."""
    try:
        return ACTIVATIONS[name]
    except (KeyError, TypeError):
        raise ValueError(f"unknown activation {name!r}: expected one of {', '.join(ACTIVATIONS)}") from None


def _check_size(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value


def _check_state(y: Tensor, dim: int) -> None:
    if y.ndim != 2 or y.shape[1] != dim:
        raise ValueError(f"expected a state of shape (n, {dim}), got {tuple(y.shape)}")


class Layers(NamedTuple):
    """Weights of `ControlledField`, one set per sample. ``out_weight`` and ``out_bias`` are None for an affine field.

    weight (n, m, dim), bias (n, m), out_weight (n, dim, m), out_bias (n, dim), with m = dim (affine) or hidden.
    """

    weight: Tensor
    bias: Tensor
    out_weight: Tensor | None
    out_bias: Tensor | None


class ControlledField(nn.Module):
    """A vector field whose weights differ from sample to sample and are read from a control vector.

    Affine, ``hidden=None``:        x' = act(W_i x + b_i)
    One hidden layer, ``hidden=m``: x' = V_i act(W_i x + b_i) + c_i

    for sample i. The module owns no parameters: all weights come in through ``controls``, so it has the dtype and the
    device of its inputs. With controls that do not change during the solve this is the open-loop case of N-CODE
    (Chalvidal, Ricci, VanRullen, Serre, arXiv 2006.09545).

    Args:
        dim: length d of the state.
        hidden: number m of hidden units, or None for the affine field.
        activation: one of `ACTIVATIONS`.

    Attributes:
        n_controls: length of the control vector: d*d + d (affine), or 2*m*d + m + d.
            The order in it is W (row by row), b, V (row by row), c.

    Raises:
        ValueError: sizes that are not positive integers, an unknown activation, or (on call) wrong shapes.
    """

    def __init__(self, dim: int, hidden: int | None = None, activation: str = "tanh") -> None:
        super().__init__()
        self.dim = _check_size("dim", dim)
        self.hidden = None if hidden is None else _check_size("hidden", hidden)
        self.activation = activation
        self._act = get_activation(activation)
        m = self.dim if self.hidden is None else self.hidden
        shapes = [(m, dim), (m,)] if self.hidden is None else [(m, dim), (m,), (dim, m), (dim,)]
        self._shapes = shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        self.n_controls = sum(self._sizes)

    def unpack(self, controls: Tensor) -> Layers:
        """Views of ``controls`` (n, n_controls) as the weights of every sample."""
        if controls.ndim != 2 or controls.shape[1] != self.n_controls:
            raise ValueError(
                f"expected controls of shape (n, {self.n_controls}) for dim={self.dim}, hidden={self.hidden}, "
                f"got {tuple(controls.shape)}"
            )
        parts = [
            part.reshape(-1, *shape)
            for part, shape in zip(controls.split(self._sizes, dim=1), self._shapes, strict=True)
        ]
        return Layers(*parts) if self.hidden is not None else Layers(parts[0], parts[1], None, None)

    def forward(self, t: Tensor, y: Tensor, controls: Tensor) -> Tensor:
        """dy/dt (n, dim) of the states ``y`` (n, dim) under ``controls`` (n, n_controls). ``t`` is not used."""
        _check_state(y, self.dim)
        if controls.ndim != 2 or controls.shape[0] != y.shape[0]:
            raise ValueError(
                f"expected controls of shape ({y.shape[0]}, {self.n_controls}), got {tuple(controls.shape)}"
            )
        layers = self.unpack(controls)
        x = self._act(torch.baddbmm(layers.bias.unsqueeze(2), layers.weight, y.unsqueeze(2)))
        if layers.out_weight is not None and layers.out_bias is not None:
            x = torch.baddbmm(layers.out_bias.unsqueeze(2), layers.out_weight, x)
        return x.squeeze(2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, hidden={self.hidden}, activation={self.activation!r}, n_controls={self.n_controls}"


class MLPField(nn.Module):
    """A vector field with weights shared by all samples: x' = MLP(x), or MLP([x, t]) with ``time=True``.

    Args:
        dim: length of the state.
        hidden: sizes of the hidden layers; an empty sequence gives a linear field.
        activation: one of `ACTIVATIONS`, after every layer but the last.
        time: append the time to the input.

    Raises:
        ValueError: sizes that are not positive integers, an unknown activation, or (on call) wrong shapes.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64,), activation: str = "tanh", time: bool = False) -> None:
        super().__init__()
        self.dim = _check_size("dim", dim)
        self.hidden = tuple(_check_size("every entry of hidden", size) for size in hidden)
        self.activation = activation
        self.time = bool(time)
        self._act = get_activation(activation)
        sizes = [dim + int(self.time), *self.hidden, dim]
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt (n, dim) of the states ``y`` (n, dim) at times ``t`` (n, 1), or any shape that broadcasts to it."""
        _check_state(y, self.dim)
        x = torch.cat([y, t.to(y.dtype).expand(y.shape[0], 1)], dim=1) if self.time else y
        for layer in self.layers[:-1]:
            x = self._act(layer(x))
        out: Tensor = self.layers[-1](x)
        return out

    def extra_repr(self) -> str:
        return f"dim={self.dim}, hidden={self.hidden}, activation={self.activation!r}, time={self.time}"
