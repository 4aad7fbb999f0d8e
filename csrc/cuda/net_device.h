// Kernels of whole solves and their launches; included by the net_*.cu, one for each type and direction.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "cuda/launch.h"
#include "cuda/net_adjoint.h"
#include "cuda/net_dispatch.h"
#include "cuda/net_forward.h"

namespace fastode {

template <int kThreads>
using NetGroup = std::conditional_t<kThreads == kWarp, WarpGroup<kThreads>, BlockGroup<kThreads>>;

// A group of threads and what it needs in static shared memory.
template <class Shape>
struct NetStatics {
    double exchange[Shape::kThreads / kWarp];
    int64_t slot[Shape::kGroups];
};

template <class Shape, class T>
__global__ void __launch_bounds__(Shape::kThreads* Shape::kGroups, Shape::kBlocks)
    net_forward_kernel(const __grid_constant__ NetSolve<T> solve, int per_group) {
    extern __shared__ __align__(16) unsigned char memory[];
    __shared__ NetStatics<Shape> statics;
    NetGroup<Shape::kThreads> group;
    group.exchange = statics.exchange;
    const int own = Shape::kGroups == 1 ? 0 : static_cast<int>(threadIdx.x) / Shape::kThreads;
    NetForward<Shape, T, NetGroup<Shape::kThreads>> solver(group, solve, reinterpret_cast<T*>(memory) + own * per_group,
                                                           statics.slot + own);
    const int64_t n = solve.queue == nullptr ? solve.batch : solve.n_queue;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * Shape::kGroups;
    // Samples in fixed assignment: which group solves one has no influence on its bits, and a stiff one holds up its
    // own.
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * Shape::kGroups + own; i < n; i += stride) {
        solver.run(solve.queue == nullptr ? i : solve.queue[i], solve.queue != nullptr);
    }
}

template <class Shape, class T>
__global__ void __launch_bounds__(Shape::kThreads* Shape::kGroups, Shape::kBlocks)
    net_adjoint_kernel(const __grid_constant__ NetAdjoint<T> adjoint, int per_group) {
    extern __shared__ __align__(16) unsigned char memory[];
    __shared__ NetStatics<Shape> statics;
    NetGroup<Shape::kThreads> group;
    group.exchange = statics.exchange;
    const int own = Shape::kGroups == 1 ? 0 : static_cast<int>(threadIdx.x) / Shape::kThreads;
    NetBackward<Shape, T, NetGroup<Shape::kThreads>> solver(group, adjoint,
                                                            reinterpret_cast<T*>(memory) + own * per_group);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * Shape::kGroups + own;
    T* scratch = adjoint.scratch == nullptr ? nullptr : adjoint.scratch + first * adjoint.pages.every * adjoint.width;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * Shape::kGroups;
    for (int64_t b = first; b < adjoint.batch; b += stride) solver.run(b, scratch);
}

// How many blocks of a kernel a GPU holds at a time, all its multiprocessors together.
template <class Kernel>
int64_t resident_blocks(Kernel kernel, int threads, int bytes, const Stream& stream) {
    static std::mutex mutex;
    static std::map<std::pair<const void*, std::pair<int, int>>, int64_t> known;
    static std::map<std::pair<const void*, int>, int> allowed;
    const std::lock_guard<std::mutex> lock(mutex);
    int64_t& found = known[{reinterpret_cast<const void*>(kernel), {stream.device, bytes}}];
    if (found == 0) {
        int blocks = 0, multiprocessors = 0;
        int& most = allowed[{reinterpret_cast<const void*>(kernel), stream.device}];
        if (bytes > most) {
            check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                       "shared memory of a solve");
            most = bytes;
        }
        check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, bytes), "occupancy");
        check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device), "device");
        found = static_cast<int64_t>(blocks > 0 ? blocks : 1) * multiprocessors;
    }
    return found;
}

// Blocks for so many samples: not more than run at a time, and all with the same number of samples where that is so.
template <class Shape, class Kernel>
int64_t blocks_for(Kernel kernel, int64_t samples, int bytes, const Stream& stream) {
    const int64_t wanted = (samples + Shape::kGroups - 1) / Shape::kGroups;
    const int64_t resident = resident_blocks(kernel, Shape::kThreads * Shape::kGroups, bytes, stream);
    if (wanted <= resident) return wanted;
    const int64_t rounds = (wanted + resident - 1) / resident;
    return (wanted + rounds - 1) / rounds;
}

template <class T>
void net_forward_on_device(const NetSolve<T>& solve, const Stream& stream) {
    const int64_t samples = solve.queue == nullptr ? solve.batch : solve.n_queue;
    if (samples == 0) return;
    const OnDevice scope(stream);
    with_shape<T>(net_dimension(widest_of(solve.layer, solve.layers)), solve.layers, [&](auto shape) {
        using Shape = decltype(shape);
        const auto kernel = net_forward_kernel<Shape, T>;
        const int per_group = Shape::forward_shared(solve.method.s);
        const int bytes = per_group * Shape::kGroups * static_cast<int>(sizeof(T));
        const auto blocks = static_cast<unsigned>(blocks_for<Shape>(kernel, samples, bytes, stream));
        kernel<<<blocks, Shape::kThreads * Shape::kGroups, bytes, stream_of(stream)>>>(solve, per_group);
        check_cuda(cudaGetLastError(), "the kernel of a solve");
    });
}

template <class T>
void net_adjoint_on_device(const NetAdjoint<T>& adjoint, const Stream& stream) {
    if (adjoint.batch == 0) return;
    const OnDevice scope(stream);
    with_shape<T>(net_dimension(widest_of(adjoint.layer, adjoint.layers)), adjoint.layers, [&](auto shape) {
        using Shape = decltype(shape);
        const auto kernel = net_adjoint_kernel<Shape, T>;
        const int per_group = Shape::adjoint_shared(adjoint.method.s);
        const int bytes = per_group * Shape::kGroups * static_cast<int>(sizeof(T));
        const auto blocks = static_cast<unsigned>(blocks_for<Shape>(kernel, adjoint.batch, bytes, stream));
        kernel<<<blocks, Shape::kThreads * Shape::kGroups, bytes, stream_of(stream)>>>(adjoint, per_group);
        check_cuda(cudaGetLastError(), "the kernel of an adjoint");
    });
}

// How many groups the adjoint of a batch has.
template <class T>
int64_t net_groups_on_device(int dim, int layers, int s, int64_t batch, const Stream& stream) {
    int64_t groups = 0;
    const OnDevice scope(stream);
    with_shape<T>(dim, layers, [&](auto shape) {
        using Shape = decltype(shape);
        const int bytes = Shape::adjoint_shared(s) * Shape::kGroups * static_cast<int>(sizeof(T));
        groups = blocks_for<Shape>(net_adjoint_kernel<Shape, T>, batch, bytes, stream) * Shape::kGroups;
    });
    return groups;
}

void net_forward_f32(const NetSolve<float>& solve, const Stream& stream);
void net_forward_f64(const NetSolve<double>& solve, const Stream& stream);

}  // namespace fastode
