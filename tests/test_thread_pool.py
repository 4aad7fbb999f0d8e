"""The extension's threads, own or OpenMP's: work done once, sleep, fork, nesting, concurrency, errors, exit."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastode._environment import _C

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(autouse=True, params=["own", "openmp"])
def runtime(request: pytest.FixtureRequest) -> Iterator[str]:
    if _C.share_openmp(request.param == "openmp") != (request.param == "openmp"):
        pytest.skip("torch has no OpenMP runtime here")
    yield request.param
    _C.share_openmp(os.environ.get("FASTODE_OPENMP") != "0")


def only_own(runtime: str) -> None:
    if runtime != "own":
        pytest.skip("about our own workers")


def n_threads_of_process() -> int:
    return len(os.listdir("/proc/self/task"))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n_chunks", [0, 1, 2, 7, 1000])
def test_every_chunk_runs_once_in_a_slot_that_exists(threads, n_chunks):
    _C.set_num_threads(threads)
    for _ in range(20):
        slots = _C.pool_trace(n_chunks)
        assert len(slots) == n_chunks
        assert set(slots) <= set(range(threads))


def test_all_threads_take_part():
    _C.set_num_threads(3)
    assert set(_C.pool_trace(12, sleep_us=20_000)) == {0, 1, 2}


def test_one_thread_uses_the_caller_only():
    _C.set_num_threads(1)
    assert set(_C.pool_trace(50, sleep_us=10)) == {0}


def test_threads_save_time():
    _C.set_num_threads(4)
    _C.pool_trace(4)
    begin = time.perf_counter()
    _C.pool_trace(8, sleep_us=50_000)  # 0.4 s of sleep in one thread, 0.1 s in four
    assert time.perf_counter() - begin < 0.3


def test_nested_calls_run_inside_their_caller():
    _C.set_num_threads(3)
    slots = _C.pool_trace(10, sleep_us=1000, inner=6)
    assert len(slots) == 60
    assert set(slots) <= {0, 1, 2}, "-2 would mean that a nested call left its thread, -1 that it did not run"
    for chunk in range(10):
        assert len(set(slots[6 * chunk : 6 * chunk + 6])) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_reaches_the_caller_and_the_pool_goes_on(threads):
    _C.set_num_threads(threads)
    for chunk in range(12):  # whichever thread takes it
        with pytest.raises(RuntimeError, match=f"chunk {chunk} failed as asked"):
            _C.pool_trace(12, sleep_us=200, fail_at=chunk)
        assert -1 not in _C.pool_trace(12)


def test_concurrent_callers_all_finish():
    _C.set_num_threads(2)
    results: dict[int, list[set[int]]] = {}

    def call(key: int) -> None:
        results[key] = [set(_C.pool_trace(20, sleep_us=200)) for _ in range(20)]

    callers = [threading.Thread(target=call, args=(key,)) for key in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    seen = [slots for key in range(4) for slots in results[key]]
    assert len(seen) == 80
    assert all(slots <= {0, 1} for slots in seen)
    assert any(slots == {0} for slots in seen), "while one caller has the workers, another runs alone"
    assert any(slots == {0, 1} for slots in seen), "one of the callers has the workers"


@pytest.mark.parametrize("n", [0, -1, 1025])
def test_number_of_threads_is_checked(n):
    with pytest.raises(ValueError, match=f"between 1 and 1024, got {n}"):
        _C.set_num_threads(n)


@needs_proc
def test_workers_are_made_when_needed_and_ended_when_told(runtime):
    only_own(runtime)
    _C.stop_threads()
    before = n_threads_of_process()
    _C.set_num_threads(4)
    assert n_threads_of_process() == before
    _C.pool_trace(4)
    assert n_threads_of_process() == before + 3
    _C.set_num_threads(2)
    _C.pool_trace(4)
    assert n_threads_of_process() == before + 1
    _C.stop_threads()
    assert n_threads_of_process() == before
    assert -1 not in _C.pool_trace(4)


def test_idle_workers_use_no_processor_time(runtime):
    only_own(runtime)
    _C.set_num_threads(4)
    _C.pool_trace(8, sleep_us=100)
    begin = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - begin < 0.1


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_workers_of_its_own():
    _C.set_num_threads(2)
    _C.pool_trace(4, sleep_us=1000)
    assert child_uses_both_threads()
    assert set(_C.pool_trace(8, sleep_us=10_000)) == {0, 1}, "the parent's pool still works"


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_another_thread_uses_the_pool():
    _C.set_num_threads(2)
    other = threading.Thread(target=_C.pool_trace, args=(100, 5000))
    other.start()
    time.sleep(0.02)
    assert child_uses_both_threads()
    other.join()


def child_uses_both_threads() -> bool:
    """Fork; in the child use the pool; True if that worked and ended within some seconds."""
    child = os.fork()
    if child == 0:
        try:
            good = set(_C.pool_trace(8, 10_000)) == {0, 1}
        except BaseException:
            good = False
        os._exit(0 if good else 1)
    for _ in range(1000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def test_the_process_ends_cleanly_after_use():
    done = run_python("from fastode._environment import _C\n_C.set_num_threads(4)\n_C.pool_trace(100)\nprint('used')")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "used", "")


def test_the_process_ends_cleanly_during_use():
    code = (
        "import threading, time\n"
        "from fastode._environment import _C\n"
        "_C.set_num_threads(3)\n"
        "threading.Thread(target=_C.pool_trace, args=(60, 10_000), daemon=True).start()\n"
        "time.sleep(0.05)\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_process_ends_cleanly_while_threads_come_back_from_kernels():
    """Python ends a thread that asks for its lock then, and with it unwinds whatever the thread is in."""
    code = (
        "import threading, time\n"
        "from fastode._environment import _C\n"
        "def work():\n"
        "    while True: _C.pool_trace(60, 2000)\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.05)\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_choice_of_runtime_is_named():
    done = run_python("import fastode", FASTODE_OPENMP="maybe")
    assert done.returncode != 0
    assert "FASTODE_OPENMP must be 0 or 1, got 'maybe'" in done.stderr
