"""What a run writes while it trains: a CSV with one row per epoch, and lines where there is no terminal."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar

METRICS_FILE = "metrics.csv"
COLUMNS = ("epoch", "step", "train_loss", "val_loss", "val_mse", "lr", "solver_steps", "seconds")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's `METRICS_FILE`, empty fields left out; no rows where there is no file."""
    file = folder / METRICS_FILE
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]


class EpochTable(Callback):
    """Collects a row per epoch and puts the rows into every checkpoint.

    Lightning's own CSV logger empties its folder when a run is resumed. Here a checkpoint brings its rows along, so
    that they always tell of exactly the epochs that the model was trained for, whenever a run was cut off.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self._started, 4),
        }
        self.rows.append(row | {k: float(v) for k, v in trainer.callback_metrics.items() if k in COLUMNS})


class EpochLog(Checkpoint):
    """Writes the rows of ``table`` to `METRICS_FILE`, and the newest as a line if ``echo``.

    Its base class, which has no methods, makes Lightning call it after the callbacks that save checkpoints: an epoch is
    told of when it can no longer be lost.
    """

    def __init__(self, table: EpochTable, folder: Path, echo: bool) -> None:
        self.table = table
        self.file = folder / METRICS_FILE
        self.echo = echo

    def _write(self) -> None:
        with self.file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(self.table.rows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._write()
        if self.echo:
            row = self.table.rows[-1]
            losses = "  ".join(f"{name} {row[name]:.4f}" for name in ("train_loss", "val_loss", "val_mse"))
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {losses}  {row['seconds']:.1f} s", flush=True
            )


class ProgressBar(TQDMProgressBar):
    """Lightning's, with epochs counted as everywhere else here and without the logger's version."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")
