"""One training run from its settings to its report."""

import itertools
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from fastode.models import load_model
from fastode.models.base import MODEL_FILE, why_unreadable
from fastode.train import report
from fastode.train.callbacks import EpochLog, EpochTable, ProgressBar, read_metrics
from fastode.train.config import TrainConfig, build_model
from fastode.train.data import ImageData, load_data
from fastode.train.loader import ImageModule
from fastode.train.module import TrainModule

RUNS = "runs"
CHECKPOINTS = "checkpoints"
LAST, BEST = "last", "best"
# Lightning starts the other processes of a run by running the same command again: they must find the same folder.
FOLDER_VARIABLE = "FASTODE_RUN_FOLDER"


def last_checkpoint(folder: Path) -> Path:
    """Where a run keeps the state after its last completed epoch."""
    return folder / CHECKPOINTS / f"{LAST}.ckpt"


def check_checkpoint(file: Path) -> None:
    """Raises unless a run can go on from this file; nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not written by a run.
    """
    if not file.is_file():
        raise FileNotFoundError(f"nothing to resume: {file} does not exist")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        raise ValueError(
            f"cannot resume from {file}, it is damaged or no checkpoint: {why_unreadable(error)}"
        ) from None
    wanted = {"fastode", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise ValueError(f"cannot resume from {file}: it is no checkpoint of `fastode train`")


def newest_run(root: Path) -> Path:
    """The run below ``root`` whose last checkpoint is the newest; FileNotFoundError if there is none."""
    found = [folder for folder in root.glob("*") if last_checkpoint(folder).is_file()] if root.is_dir() else []
    if not found:
        raise FileNotFoundError(f"no run to resume below {root}: give its folder by --out")
    return max(found, key=lambda folder: last_checkpoint(folder).stat().st_mtime)


def _run_folder(config: TrainConfig) -> Path:
    if config.out is not None:
        return Path(config.out)
    is_further_process = os.environ.get("LOCAL_RANK", "0") != "0"
    name = os.environ.get(FOLDER_VARIABLE) if is_further_process else None
    if name is None:
        name = str(_new_folder(Path(RUNS) / f"{datetime.now():%Y%m%d-%H%M%S}-{config.data}-{config.model}"))
        os.environ[FOLDER_VARIABLE] = name
    return Path(name)


def _new_folder(wanted: Path) -> Path:
    """Makes a folder of this name, or with -2, -3, ... behind it where another run has just made it."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without advice that does not apply to images in memory."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*number of training batches.*smaller than the logging interval.*",
                ".*Checkpoint directory .* exists and is not empty.*",
                ".*callbacks used when the checkpoint was created.*",
                ".*tensorboardX.*",
                ".*isinstance.treespec, LeafSpec.*",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _devices(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def make_trainer(config: TrainConfig, folder: Path, callbacks: list[Callback] | None = None) -> L.Trainer:
    """The Lightning trainer of a run that writes into ``folder``."""
    # Two of them: with save_last=True one alone leaves the last state unsaved in epochs that are not the best.
    # "last" comes second, because it holds what "best" remembers.
    common: dict[str, Any] = {
        "dirpath": folder / CHECKPOINTS,
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
    }
    best = ModelCheckpoint(filename=BEST, monitor="val_loss", **common)
    last = ModelCheckpoint(filename=LAST, **common)
    table = EpochTable()
    log = EpochLog(table, folder, echo=not config.progress)
    everything: list[Callback] = [table, *(callbacks or []), best, last, log]
    if config.early_stop is not None:
        everything.append(EarlyStopping("val_loss", patience=config.early_stop))
    if config.progress:
        everything.append(ProgressBar())
    precision: Any = config.precision
    return L.Trainer(
        max_epochs=config.n_epochs,
        accelerator=config.accelerator,
        devices=_devices(config.devices),
        strategy=config.strategy,
        precision=precision,
        callbacks=everything,
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        enable_progress_bar=config.progress,
        enable_model_summary=False,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
    )


def train(config: TrainConfig, *, resume: bool = False, callbacks: list[Callback] | None = None) -> dict[str, Any]:
    """Train, evaluate and write everything into the run's folder.

    Args:
        config: the settings; with ``resume`` those of the run to go on with, changed where that is allowed.
        resume: start from the last completed epoch in ``config.out``.
        callbacks: further Lightning callbacks.

    Returns:
        The report as plain data, empty on all but the first of several processes. ``report["folder"]`` and
        ``report["files"]`` say what was written.

    Raises:
        DataError: the data cannot be read.
        FileNotFoundError: nothing to resume from.
        FileExistsError: the folder already holds a run and ``resume`` was not asked for.
    """
    folder = _run_folder(config)
    checkpoint = last_checkpoint(folder)
    is_first_process = int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    if resume:
        check_checkpoint(checkpoint)
    elif is_first_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the folder of the run, --out {folder}: {error.strerror}") from error
    if not resume and is_first_process and checkpoint.exists():
        raise FileExistsError(f"{folder} already holds a run: resume it with --resume, or choose another --out")
    data = load_data(
        config.data,
        config.data_dir,
        seed=config.seed,
        limit=config.limit,
        image_size=config.image_size,
        channels=config.channels,
    )
    with _quiet():
        L.seed_everything(config.seed, verbose=False)
        model = build_model(config, data.image_shape)
        trainer = make_trainer(config, folder, callbacks)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            config.save(folder)
            shape = "x".join(map(str, data.image_shape))
            print(f"{data.source}: {len(data.train)} images of {shape} to train on")
            print(f"{type(model).__name__}, {model.n_parameters():,} parameters, into {folder}", flush=True)
        started = time.perf_counter()
        trainer.fit(
            TrainModule(model, config),
            datamodule=ImageModule(data, config.batch_size, config.seed),
            ckpt_path=str(checkpoint) if resume else None,
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if not trainer.is_global_zero:
            return {}
        return _finish(config, folder, data, trainer, time.perf_counter() - started)


def _finish(config: TrainConfig, folder: Path, data: ImageData, trainer: L.Trainer, seconds: float) -> dict[str, Any]:
    """Report on the best model of the run."""
    rows = read_metrics(folder)
    best = min(rows, key=lambda row: row.get("val_loss", float("inf")))
    model = load_model(folder / CHECKPOINTS / f"{BEST}.ckpt")
    model.save(folder / MODEL_FILE)
    numbers = report.evaluate(model, data, config, trainer.strategy.root_device)
    report.draw(folder, model, data, int(best["epoch"]), numbers)
    result: dict[str, Any] = {
        "folder": str(folder),
        "model": config.model,
        "data": {
            "name": data.name,
            "source": data.source,
            "image_shape": list(data.image_shape),
            "classes": data.classes,
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
        },
        "config": {**config.__dict__, "epochs": config.n_epochs},
        "epochs": int(rows[-1]["epoch"]) + 1,
        "best_epoch": int(best["epoch"]) + 1,
        "train_seconds": sum(row["seconds"] for row in rows),
        "session_seconds": seconds,
        "results": numbers,
        "torch": torch.__version__,
    }
    report.write(folder, result)
    result["files"] = [str(file) for file in sorted(folder.rglob("*")) if file.is_file()]
    report.write(folder, result)
    return result
