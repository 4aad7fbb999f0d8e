"""Settings shared by all tests."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

# Several workers share the cores: threads of torch that wait for each other in a spin on the same core take 40 times as
# long. Before torch is imported, and for the processes that tests start.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torch

from fastode import _environment
from fastode._environment import _C
from fastode.program import known

# No deadline: shared machines stall. In CI the examples are the same in every run.
hypothesis.settings.register_profile("fastode", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "fastode")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    if not any(item.get_closest_marker("gpu") for item in items) or torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def same_surroundings() -> Iterator[None]:
    """Start every test from the same random state, and undo changes of the settings of the process."""
    torch.manual_seed(0)
    changing, known._CHANGING = known._CHANGING, 10**9  # tests use one field with many numbers, each of them once
    isa, threads, torch_threads = _C.get_isa(), _C.get_num_threads(), torch.get_num_threads()
    wanted, dtype = _environment._wanted_threads, torch.get_default_dtype()
    yield
    known._CHANGING = changing
    _C.set_isa(isa)
    _C.set_num_threads(threads)
    _environment._wanted_threads = wanted
    torch.set_num_threads(torch_threads)
    torch.set_default_dtype(dtype)
