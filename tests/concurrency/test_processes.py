"""Solves in worker processes, forked and spawned, and gradients shared between two processes."""

import os
from pathlib import Path

import pytest
import torch
from torch import multiprocessing
from torch.utils.data import DataLoader

import fastode
from tests.concurrency import workers

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
WAYS = [
    pytest.param("fork", marks=[needs_fork, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]),
    pytest.param("spawn", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("way", WAYS)
def test_solves_in_workers_of_a_data_loader(way):
    """The parent has solved before, with threads: its workers do not come along, its programs do when it forks."""
    fastode.set_num_threads(2)
    expected = torch.stack([workers.solved(i) for i in range(8)])
    loader = DataLoader(
        workers.Solves(),
        batch_size=2,
        num_workers=2,
        multiprocessing_context=way,
        timeout=120,
        persistent_workers=False,
    )
    for _ in range(2):  # an epoch each, with workers of its own
        assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(workers.solved(3), expected[3])


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_have_the_gradients_of_one(tmp_path: Path):
    """DistributedDataParallel over gloo: halves of the batch, captured field, checkpoints."""
    expected = workers.gradients(workers.Model(), workers.batch())
    context = multiprocessing.get_context("spawn")
    result = context.SimpleQueue()
    processes = [
        context.Process(target=workers.distributed, args=(rank, str(tmp_path), result), daemon=True) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    for _, passes in (result.get(), result.get()):
        for grads in passes:
            assert len(grads) == len(expected)
            for grad, true in zip(grads, expected, strict=True):
                found = torch.tensor(grad, dtype=torch.float64)
                assert float((found - true).norm() / true.norm()) < 1e-14
