// Whole solves with per-sample weight matrices on the host, thread after thread: for tests where there is no GPU.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O1")  // run by tests only: what it costs is the time to compile it
#endif

#include <memory>
#include <type_traits>

#include "cuda/net_adjoint.h"
#include "cuda/net_dispatch.h"
#include "cuda/net_forward.h"

namespace fastode {
namespace {

template <class T>
void forward(const NetSolve<T>& solve, const Stream&) {
    with_shape<T>(net_dimension(widest_of(solve.layer, solve.layers)), solve.layers, [&](auto shape) {
        using Shape = decltype(shape);
        using Group = HostGroup<Shape::kThreads>;
        const auto count = static_cast<size_t>(Shape::forward_shared(solve.method.s)) + 16;
        const std::unique_ptr<T[]> memory(new T[count]);
        T* shared = memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) % 16) % 16 / sizeof(T);
        for (size_t i = 0; i + 16 < count; ++i) shared[i] = static_cast<T>(NAN);
        const Group group;
        int64_t slot = 0;
        const auto solver = std::make_unique<NetForward<Shape, T, Group>>(group, solve, shared, &slot);
        const int64_t n = solve.queue == nullptr ? solve.batch : solve.n_queue;
        for (int64_t i = 0; i < n; ++i) {
            solver->run(solve.queue == nullptr ? i : solve.queue[i], solve.queue != nullptr);
        }
    });
}

template <class T>
void backward(const NetAdjoint<T>& adjoint, const Stream&) {
    with_shape<T>(net_dimension(widest_of(adjoint.layer, adjoint.layers)), adjoint.layers, [&](auto shape) {
        using Shape = decltype(shape);
        using Group = HostGroup<Shape::kThreads>;
        const auto count = static_cast<size_t>(Shape::adjoint_shared(adjoint.method.s)) + 16;
        const std::unique_ptr<T[]> memory(new T[count]);
        T* shared = memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) % 16) % 16 / sizeof(T);
        for (size_t i = 0; i + 16 < count; ++i) shared[i] = static_cast<T>(NAN);
        const Group group;
        const auto solver = std::make_unique<NetBackward<Shape, T, Group>>(group, adjoint, shared);
        for (int64_t b = 0; b < adjoint.batch; ++b) solver->run(b, adjoint.scratch);
    });
}

int64_t groups(int, int, int, int64_t, const Stream&) { return 1; }

}  // namespace

const NetLaunches<float> host_net_launches_f32 = {forward<float>, backward<float>, groups};
const NetLaunches<double> host_net_launches_f64 = {forward<double>, backward<double>, groups};

}  // namespace fastode
