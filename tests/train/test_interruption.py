"""Processes that are killed or interrupted: no completed epoch is lost, and the user is told how to go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastode.models import load_model
from fastode.train.callbacks import read_metrics
from fastode.train.config import TrainConfig
from fastode.train.run import last_checkpoint, train

TIMEOUT = 240
OPTIONS = ["--model", "ae", "--limit", "400", "--width", "8", "--batch-size", "32", "--epochs", "400"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="sends signals to a process")]


def start_and_stop(folder: Path, after: int, number: signal.Signals) -> tuple[int, str]:
    """(exit code, output) of a run that gets a signal once ``after`` epochs are in its table."""
    command = [sys.executable, "-m", "fastode", "train", *OPTIONS, "--out", str(folder)]
    # Python ignores an interrupt that its parent ignored, as a shell does for what it runs in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < TIMEOUT and len(read_metrics(folder)) < after:
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, output


def test_a_killed_process_loses_no_completed_epoch(tmp_path):
    folder = tmp_path / "run"
    code, output = start_and_stop(folder, 3, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    done = torch.load(last_checkpoint(folder), weights_only=True)["callbacks"]["EpochTable"]["rows"]
    assert len(done) >= output.count("val_mse") >= 2
    result = train(TrainConfig.load(folder).changed(epochs=len(done) + 1), resume=True)
    assert result["epochs"] == len(done) + 1
    rows = read_metrics(folder)
    assert rows[: len(done)] == [{name: float(value) for name, value in row.items()} for row in done]
    assert rows[-1]["step"] == pytest.approx(rows[0]["step"] * len(rows))


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path):
    """Without a word, at whatever place it happens to be: the same metrics, and the same model to the bit."""
    options = ["--model", "autoencode", "--limit", "200", "--width", "4", "--code-size", "3", "--epochs", "12"]
    command = [sys.executable, "-m", "fastode", "train", *options, "--batch-size", "32", "--no-progress"]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True, timeout=TIMEOUT)
    folder = tmp_path / "killed"
    for after in (2, 5, 9):
        resumed = [sys.executable, "-m", "fastode", "train", "--resume", "--no-progress"] if after > 2 else command
        process = subprocess.Popen([*resumed, "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with process:
            started = time.monotonic()
            while process.poll() is None and time.monotonic() - started < TIMEOUT and len(read_metrics(folder)) < after:
                time.sleep(0.01)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    train(TrainConfig.load(folder).changed(progress=False), resume=True)
    ends = [read_metrics(tmp_path / name) for name in ("whole", "killed")]
    for rows in ends:
        assert len(rows) == 12
        for row in rows:
            del row["seconds"]
    assert ends[0] == ends[1]
    models = [load_model(tmp_path / name).state_dict() for name in ("whole", "killed")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_control_c_ends_with_a_word_on_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    code, output = start_and_stop(folder, 1, signal.SIGINT)
    assert code == 130, output
    assert "--resume" in output
    assert "Traceback" not in output
    assert last_checkpoint(folder).is_file()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(TrainConfig(out=str(tmp_path / "none"), progress=False), resume=True)
