"""The compiled extension. Pointers and streams are plain integers; 0 is a null pointer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

class BuildInfo(TypedDict):
    compiler: str
    target: str
    isas: list[str]
    cuda: bool
    cuda_reason: str
    cuda_archs: list[str]
    nvcc: str

class CudaDevice(TypedDict):
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    shared_per_block: int
    registers_per_multiprocessor: int

class CudaRuntime(TypedDict):
    driver: int
    runtime: int
    reason: str

# core: the build, the processor, the threads
def build_info() -> BuildInfo: ...
def cpu_brand() -> str: ...
def cpu_features() -> list[str]: ...
def usable_isas() -> list[str]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def share_openmp(wanted: bool) -> bool: ...
def stop_threads() -> None: ...
def pool_trace(n_chunks: int, sleep_us: int = 0, fail_at: int = -1, inner: int = 1) -> list[int]: ...

class Matcher:
    def __init__(
        self,
        statements: Sequence[tuple[str, int, int, int, Any]],
        n_slots: int,
        distinct: Sequence[int],
    ) -> None: ...
    def match(self, root: Any) -> list[Any] | None: ...

# cuda: the GPUs
def cuda_devices() -> list[CudaDevice]: ...
def cuda_runtime() -> CudaRuntime: ...

# cuda: the `stepped` backend on a GPU; device -1 runs the same text on the host
step_rows: dict[str, int]

def step_chunks(width: int) -> int: ...
def combine_on(
    *,
    device: int,
    out_ptr: int,
    base_ptr: int,
    scale_ptr: int,
    coefs: Sequence[float],
    ptrs: Sequence[int],
    n: int,
    d: int,
    is_double: bool,
    stream: int,
) -> None: ...

class _StepKernels:
    def __init__(
        self,
        *,
        device: int,
        batch: int,
        width: int,
        n_times: int,
        max_steps: int,
        first_step: float,
        times_ptr: int,
        step_size_ptr: int,
        rtol_ptr: int,
        atol_ptr: int,
        q_ptr: int,
        ys_ptr: int,
        sample_ptr: int,
        real_ptr: int,
        whole_ptr: int,
        counters_ptr: int,
        y_ptr: int,
        k_ptr: int,
        partial_ptr: int,
        c: Sequence[float],
        a: Sequence[float],
        e: Sequence[float],
        degree: int,
        control: Mapping[str, float],
    ) -> None: ...
    def keep_record(
        self,
        *,
        step_chunks_ptr: int,
        state_chunks_ptr: int,
        coef_chunks_ptr: int,
        steps_per_chunk: int,
        states_per_chunk: int,
        every: int,
    ) -> None: ...
    def use_lanes(self, lanes: int, sample_ptr: int) -> None: ...
    def start(self, y0_ptr: int, k1_ptr: int, stream: int) -> None: ...
    def probe(self, t_ptr: int, y_ptr: int, stream: int) -> None: ...
    def choose_first_step(self, k_ptr: int, stream: int) -> None: ...
    def stage(self, i: int, k_ptr: int, t_ptr: int, y_ptr: int, stream: int) -> None: ...
    def finish_step(self, y1_ptr: int, k_ptr: int, stream: int) -> None: ...

class StepKernels32(_StepKernels): ...
class StepKernels64(_StepKernels): ...

class _StepWalk:
    def __init__(
        self,
        *,
        device: int,
        batch: int,
        width: int,
        n_times: int,
        degree: int,
        every: int,
        states_per_chunk: int,
        times_ptr: int,
        table_ptr: int,
        offsets_ptr: int,
        sample_ptr: int,
        state_chunks_ptr: int,
        grad_ys_ptr: int,
        grad_coefs_ptr: int,
    ) -> None: ...
    def states(self, j: int, n: int, y_ptr: int, stream: int) -> None: ...
    def steps(self, j: int, n: int, t_ptr: int, h_ptr: int, stream: int) -> None: ...
    def mark_inside(self, n: int, inside_ptr: int, stream: int) -> None: ...
    def outputs(self, j: int, n: int, p_ptr: int, g_ptr: int, stream: int) -> None: ...

class StepWalk32(_StepWalk): ...
class StepWalk64(_StepWalk): ...

# cuda: whole solves of fields with per-sample weight matrices
net_rows: dict[str, int]
net_activations: list[str]

def net_supported(*, widest: int, layers: int) -> bool: ...

class _NetMethod:
    def __init__(self, *, a: Sequence[float], b: Sequence[float], e: Sequence[float], q: Sequence[float]) -> None: ...
    def forward(
        self,
        *,
        device: int,
        stream: int,
        batch: int,
        width: int,
        n_times: int,
        times_ptr: int,
        time_row_stride: int,
        time_sample_stride: int,
        step_size_ptr: int,
        first_step: float,
        max_steps: int,
        y0_ptr: int,
        rtol_ptr: int,
        atol_ptr: int,
        ys_ptr: int,
        k1_ptr: int,
        y_ptr: int,
        real_ptr: int,
        whole_ptr: int,
        queue_ptr: int,
        n_queue: int,
        control: Mapping[str, float],
        layers: Sequence[tuple[float, ...]],
        recorded: bool,
        chunks: Sequence[tuple[int, int, int, int]],
        pages: int,
        per_page: int,
        every: int,
        taken_ptr: int,
        last_ptr: int,
    ) -> None: ...
    def backward(
        self,
        *,
        device: int,
        stream: int,
        batch: int,
        width: int,
        n_times: int,
        times_ptr: int,
        time_row_stride: int,
        time_sample_stride: int,
        whole_ptr: int,
        grad_ys_ptr: int,
        grad_y0_ptr: int,
        scratch_ptr: int,
        layers: Sequence[tuple[float, ...]],
        chunks: Sequence[tuple[int, int, int, int]],
        pages: int,
        per_page: int,
        every: int,
        last_ptr: int,
    ) -> None: ...
    def groups(self, *, device: int, widest: int, layers: int, batch: int) -> int: ...
    def shared_bytes(self, *, widest: int, layers: int, adjoint: bool) -> int: ...

class NetMethod32(_NetMethod): ...
class NetMethod64(_NetMethod): ...

# cpu: kernels on raw pointers
def combine(
    out_ptr: int,
    base_ptr: int,
    scale_ptr: int,
    coefs: list[float],
    ptrs: list[int],
    n: int,
    d: int,
    is_double: bool,
) -> None: ...

# cpu: the `stepped` backend, for states in float32 and float64
class _StepRecord:
    def __init__(self, batch: int, width: int, every: int, max_bytes: int) -> None: ...
    def finish(self) -> None: ...
    def count(self) -> NDArray[np.int64]: ...
    def table(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]: ...
    @property
    def steps(self) -> int: ...
    @property
    def every(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...

class StepRecord32(_StepRecord): ...
class StepRecord64(_StepRecord): ...

class _Stepper:
    def __init__(
        self,
        *,
        batch: int,
        width: int,
        n_times: int,
        times_ptr: int,
        step_size_ptr: int,
        rtol_ptr: int,
        atol_ptr: int,
        ys_ptr: int,
        max_steps: int,
        first_step: float,
        dense: bool,
        c: Sequence[float],
        a: Sequence[float],
        e: Sequence[float],
        q: Sequence[float],
        control: Mapping[str, float],
        record: _StepRecord | None,
    ) -> None: ...
    def start(self, y0_ptr: int, k1_ptr: int) -> None: ...
    def probe(self, t_ptr: int, y_ptr: int) -> None: ...
    def choose_first_step(self, k_ptr: int) -> None: ...
    def stage(self, i: int, k_ptr: int, t_ptr: int, y_ptr: int) -> None: ...
    def finish_step(self, y1_ptr: int, k_ptr: int) -> int: ...
    def compact(self) -> None: ...
    def running(self) -> NDArray[np.int64]: ...
    def status(self) -> NDArray[np.int64]: ...
    def reached(self) -> NDArray[np.float64]: ...
    def last_step(self) -> NDArray[np.float64]: ...
    def last_ratio(self) -> NDArray[np.float64]: ...
    def n_accepted(self) -> NDArray[np.int64]: ...
    def n_rejected(self) -> NDArray[np.int64]: ...
    def n_evals(self) -> NDArray[np.int64]: ...
    def copy_dense(self, out_ptr: int) -> None: ...
    @property
    def lanes(self) -> int: ...

class Stepper32(_Stepper): ...
class Stepper64(_Stepper): ...

class _StepWalker:
    def __init__(
        self,
        *,
        record: _StepRecord,
        width: int,
        n_times: int,
        degree: int,
        times_ptr: int,
        grad_ys_ptr: int,
        grad_coefs_ptr: int,
        samples: Sequence[int],
    ) -> None: ...
    def states(self, j: int, n: int, y_ptr: int) -> None: ...
    def steps(self, j: int, n: int, t_ptr: int, h_ptr: int) -> None: ...
    def outputs(self, j: int, n: int, p_ptr: int, g_ptr: int) -> bool: ...

class StepWalker32(_StepWalker): ...
class StepWalker64(_StepWalker): ...

# cpu: the fused `cpu` backend, for states in float32 and float64
def tile_ops() -> dict[str, int]: ...

class TileMethod:
    def __init__(
        self, c: Sequence[float], a: Sequence[float], b: Sequence[float], e: Sequence[float], q: Sequence[float]
    ) -> None: ...

class TileControl:
    def __init__(self, values: Mapping[str, float]) -> None: ...

class _TileProgram:
    def __init__(
        self,
        *,
        dim: int,
        lanes: int,
        backward_lanes: int,
        forward: tuple[NDArray[np.int32], NDArray[np.float64]],
        forward_keep: tuple[NDArray[np.int32], NDArray[np.float64]],
        reverse: tuple[NDArray[np.int32], NDArray[np.float64]],
        accumulate: tuple[NDArray[np.int32], NDArray[np.float64]],
        maps: NDArray[np.int32],
        n_tmp: int,
        n_tmp_keep: int,
        n_adj: int,
        shared_pack: NDArray[np.int64],
        param_pack: NDArray[np.int64],
        shared_sizes: Sequence[int],
        param_sizes: Sequence[int],
        n_shared: int,
        n_param: int,
    ) -> None: ...
    def evaluate(
        self,
        batch: int,
        t_ptr: int,
        y_ptr: int,
        shared_ptrs: Sequence[int],
        param_ptrs: Sequence[int],
        param_strides: Sequence[int],
        out_ptr: int,
        threads: int,
    ) -> None: ...
    def vjp(
        self,
        batch: int,
        t_ptr: int,
        y_ptr: int,
        g_ptr: int,
        shared_ptrs: Sequence[int],
        param_ptrs: Sequence[int],
        param_strides: Sequence[int],
        grad_y_ptr: int,
        grad_shared_ptrs: Sequence[int],
        grad_param_ptrs: Sequence[int],
        threads: int,
    ) -> None: ...
    def solve(
        self,
        method: TileMethod,
        control: TileControl,
        batch: int,
        n_times: int,
        times_ptr: int,
        time_row_stride: int,
        time_sample_stride: int,
        y0_ptr: int,
        shared_ptrs: Sequence[int],
        param_ptrs: Sequence[int],
        param_strides: Sequence[int],
        rtol_ptr: int,
        atol_ptr: int,
        step_size_ptr: int,
        first_step: float,
        max_steps: int,
        ys_ptr: int,
        k1_ptr: int,
        every: int,
        max_bytes: int,
        threads: int,
    ) -> tuple[NDArray[np.int64], bool, NDArray[np.int64] | None]: ...
    def dense(
        self,
        method: TileMethod,
        batch: int,
        shared_ptrs: Sequence[int],
        param_ptrs: Sequence[int],
        param_strides: Sequence[int],
        record: NDArray[np.int64],
        reached_ptr: int,
        threads: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[Any]]: ...
    def solve_adjoint(
        self,
        method: TileMethod,
        batch: int,
        n_times: int,
        times_ptr: int,
        time_row_stride: int,
        time_sample_stride: int,
        shared_ptrs: Sequence[int],
        param_ptrs: Sequence[int],
        param_strides: Sequence[int],
        record: NDArray[np.int64],
        solved_ptr: int,
        grad_ys_ptr: int,
        grad_y0_ptr: int,
        grad_shared_ptrs: Sequence[int],
        grad_param_ptrs: Sequence[int],
        threads: int,
    ) -> None: ...

class TileProgram32(_TileProgram): ...
class TileProgram64(_TileProgram): ...

# cpu: the search for events
def search_events(
    start: NDArray[np.float64],
    size: NDArray[np.float64],
    rows: NDArray[np.int64],
    coefs: NDArray[Any],
    count: NDArray[np.int64],
    direction: NDArray[np.float64],
    values: NDArray[np.float64],
    signs: NDArray[np.float64],
    occurred: NDArray[np.int64],
    kinds: Sequence[tuple[int, bool, int]],
    parts: int,
    chunk: int,
    narrow: bool,
    evaluate: Callable[[int, NDArray[Any], NDArray[Any], NDArray[np.int64]], NDArray[Any]],
) -> tuple[Any, ...]: ...
