"""The whole training step of an AutoencODE, as ``fastode train`` takes it for the digits and for CIFAR-10."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import FORWARD, GRADIENT, TRAIN, Case, Problem, Solve, generator
from fastode.models import AutoencODE


@dataclass
class ModelProblem(Problem):
    """A model that solves an ODE inside; ``y0`` holds the images, the state and the controls come from the model."""

    model: AutoencODE | None = None

    def to(self, device: str | torch.device, dtype: torch.dtype) -> ModelProblem:
        model = copy.deepcopy(self.model).to(device, dtype)  # type: ignore[union-attr]
        return replace(self, model=model, field=model.field, y0=self.y0.to(device, dtype), t=self.t.to(device, dtype))

    def weights(self) -> dict[str, Tensor]:
        assert self.model is not None
        return dict(self.model.named_parameters())

    def logits(self, solve: Solve) -> Tensor:
        """The reconstructions before the sigmoid, the ODE solved by ``solve``."""
        model = self.model
        assert model is not None

        def with_library(y0: Tensor, controls: Tensor, t: Any = None) -> SimpleNamespace:
            return SimpleNamespace(ys=solve(self, y0.contiguous(), controls), stats=None)

        model.solve = with_library  # type: ignore[method-assign]
        try:
            logits: Tensor = model.outputs(self.y0).logits
        finally:
            del model.solve
        return logits

    def forward(self, solve: Solve) -> list[Tensor]:
        with torch.no_grad():
            return [self.logits(solve)]

    def gradient(self, solve: Solve) -> list[Tensor]:
        return list(torch.autograd.grad(self.training_loss(solve), list(self.weights().values())))

    def training_loss(self, solve: Solve) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.logits(solve), self.y0)


def _autoencode(case: Case, channels: int = 1, size: int = 8, width: int = 16) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencODE(channels, size, code_size=case.width, width=width)
    images = torch.rand(case.batch, channels, size, size, generator=generator(1))
    return ModelProblem(case, model.field, images, case.times(), model=model, learning_rate=6e-3)


AUTOENCODE = Case(
    "autoencode",
    "AutoencODE on 64 images of 8x8, networks included; train: 10 whole training steps",
    _autoencode,
    batch=64,
    width=16,
    span=(0.0, 4.0),
    rtol=1e-2,
    atol=1e-3,
    modes=(FORWARD, GRADIENT, TRAIN),
    train_steps=10,
)

AUTOENCODE_CIFAR = replace(
    AUTOENCODE,
    name="autoencode-cifar10",
    about="AutoencODE on 512 random images of 3x32x32, networks included; train: 10 whole training steps",
    make=partial(_autoencode, channels=3, size=32, width=32),
    batch=512,
    width=64,
    group="gpu",
)
