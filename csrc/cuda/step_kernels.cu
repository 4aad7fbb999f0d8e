// The kernels of the `stepped` backend on a GPU.
#include "cuda/launch.h"
#include "cuda/step_programs.h"

namespace fastode {
namespace {

constexpr int64_t kMostBlocks = 1 << 20;

template <int kThreads, class T, class F>
__global__ void __launch_bounds__(kBlock) group_kernel(const __grid_constant__ F f, int64_t items) {
    constexpr int kGroups = kThreads == kBlock ? 1 : kBlock / kThreads;
    __shared__ T weights[kGroups][kMostStages];
    if constexpr (kThreads == kBlock) {
        __shared__ double exchange[kBlock / kWarp];
        BlockGroup<kThreads> group;
        group.exchange = exchange;
        for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
            f(group, item, weights[0]);
            __syncthreads();
        }
    } else {
        const WarpGroup<kThreads> group;
        const int own = static_cast<int>(threadIdx.x) / kThreads;
        const int64_t stride = static_cast<int64_t>(gridDim.x) * kGroups;
        for (int64_t item = static_cast<int64_t>(blockIdx.x) * kGroups + own; item < items; item += stride) {
            f(group, item, weights[own]);
            group.sync();
        }
    }
}

template <class F>
__global__ void __launch_bounds__(kBlock) element_kernel(const __grid_constant__ F f, int64_t count) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kBlock;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x; i < count; i += stride) f(i);
}

struct DeviceExec {
    static unsigned blocks(int64_t wanted) {
        return static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
    }

    template <int kThreads, class T, class F>
    static void groups(const F& f, int64_t items, const Stream& stream) {
        if (items == 0) return;
        constexpr int kGroups = kThreads == kBlock ? 1 : kBlock / kThreads;
        const OnDevice scope(stream);
        group_kernel<kThreads, T, F>
            <<<blocks((items + kGroups - 1) / kGroups), kBlock, 0, stream_of(stream)>>>(f, items);
        check_cuda(cudaGetLastError(), "a step kernel");
    }

    template <class F>
    static void elements(const F& f, int64_t count, const Stream& stream) {
        if (count == 0) return;
        const OnDevice scope(stream);
        element_kernel<F><<<blocks((count + kBlock - 1) / kBlock), kBlock, 0, stream_of(stream)>>>(f, count);
        check_cuda(cudaGetLastError(), "a step kernel");
    }
};

}  // namespace

const StepLaunches<float> cuda_step_launches_f32 = launches_of<StepPrograms<DeviceExec, float>, float>();
const StepLaunches<double> cuda_step_launches_f64 = launches_of<StepPrograms<DeviceExec, double>, double>();

}  // namespace fastode
