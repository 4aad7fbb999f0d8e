"""What a run writes while it trains: a CSV with one row per epoch, and lines where there is no terminal."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

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
    """Keeps a row per epoch, in `METRICS_FILE` and in the checkpoints.

    Lightning's own CSV logger empties its folder when a run is resumed. Here a checkpoint brings its rows along, so
    that the file always tells of exactly the epochs that the model was trained for, whenever a run was cut off.

    Args:
        folder: the run's.
        echo: also print every row as a line.
    """

    def __init__(self, folder: Path, echo: bool) -> None:
        self.file = folder / METRICS_FILE
        self.echo = echo
        self.rows: list[dict[str, float]] = []
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def _write(self) -> None:
        with self.file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._write()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self._started, 4),
        }
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name in COLUMNS}
        self.rows.append(row)
        if not trainer.is_global_zero:
            return
        self._write()
        if self.echo:
            losses = "  ".join(f"{name} {row[name]:.4f}" for name in ("train_loss", "val_loss", "val_mse"))
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {losses}  {row['seconds']:.1f} s", flush=True
            )
