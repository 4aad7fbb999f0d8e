"""Two processes on the CPU through Lightning's DDP with gloo."""

import json
import os
import subprocess
import sys

import pytest
import torch

from fastode.models import AutoencODE
from fastode.train.callbacks import read_metrics

FOREIGN = ("FASTODE_RUN_FOLDER", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")  # of a run in the process of the tests


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_one_model_and_report_once(tmp_path):
    command = "train --limit 60 --epochs 1 --width 4 --code-size 3 --batch-size 8 --no-progress"
    command += " --accelerator cpu --devices 2 --strategy ddp"
    surroundings = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    result = subprocess.run(
        [sys.executable, "-m", "fastode", *command.split()],  # without --out: both must find the same folder
        cwd=tmp_path,
        env={**surroundings, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1/1") == 1
    assert result.stdout.count("PSNR") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert report["epochs"] == 1
    assert report["config"]["devices"] == "2"
    assert report["results"]["held_out_images"] == 12
    (row,) = read_metrics(folder)
    assert row["step"] == 3  # 43 images to train on, 22 for each process in batches of 8
    assert report["data"]["train"] == 43
    assert AutoencODE.load(folder)(torch.rand(2, 1, 8, 8)).shape == (2, 1, 8, 8)
