"""The Lightning module: one image model, its loss, optimiser and learning-rate schedule."""

import math
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fastode.models import ImageModel
from fastode.train.config import TrainConfig
from fastode.train.objective import objective

WARMUP = 0.05
FINAL_LR = 0.01


def schedule(step: int, total: int) -> float:
    """Factor on the learning rate: linear over the first twentieth of ``total`` steps, then a cosine to 0.01."""
    warmup = max(1, round(WARMUP * total))
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return FINAL_LR + (1.0 - FINAL_LR) * 0.5 * (1.0 + math.cos(math.pi * done))


class TrainModule(L.LightningModule):
    """Trains ``model`` under ``config``. Its checkpoints can be read by `fastode.models.load_model`."""

    def __init__(self, model: ImageModel, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y

    def on_train_batch_start(self, batch: Tensor, batch_index: int) -> None:
        # The noise of a step (a VAE's samples) must not depend on how the run got there: resumed or not.
        torch.manual_seed((self.config.seed * 1_000_003 + self.global_step) * 4099 + self.global_rank)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        output = self.model.outputs(x)
        loss = objective(output, x, self.config.loss, self.config.beta)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(x))
        if output.stats is not None:
            steps = output.stats.n_steps.float().mean()
            self.log("solver_steps", steps, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(x))
        return loss

    def validation_step(self, x: Tensor, batch_index: int) -> None:
        output = self.model.outputs(x)
        loss = objective(output, x, self.config.loss, self.config.beta)
        mse = (output.reconstruction.float() - x).square().mean()
        for name, value in (("val_loss", loss), ("val_mse", mse)):
            self.log(name, value, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=len(x))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fastode"] = self.model.description()
        checkpoint["fastode_train"] = asdict(self.config)
