// The kernels of the `stepped` backend as functions: the same twice, on a GPU and, for tests without one, on the host.
#pragma once

#include <stdexcept>
#include <type_traits>

#include "cuda/step_state.h"

// The address of what only a build with CUDA has.
#if FASTODE_HAVE_CUDA
#define FASTODE_WITH_CUDA(name) &name
#else
#define FASTODE_WITH_CUDA(name) nullptr
#endif

namespace fastode {

// Of the launches for the host and those for a GPU, which are null in a build without CUDA, the ones wanted.
template <class Launches>
const Launches& for_device(bool device, const Launches& host, const std::common_type_t<Launches>* cuda) {
    if (!device) return host;
    if (cuda == nullptr) throw std::runtime_error("fastode was built without CUDA");
    return *cuda;
}

// A CUDA stream and its device; both without meaning on the host.
struct Stream {
    int device = 0;
    void* stream = nullptr;
};

// Rows wider than this are worked on in chunks, so many; `partial` has one number for each chunk of each lane.
constexpr int64_t kChunked = 8192, kChunk = 4096;
inline int64_t chunks_of(int64_t width) { return width <= kChunked ? 0 : (width + kChunk - 1) / kChunk; }

// How one kind of executor runs them; instantiated in step_kernels.cu and step_host.cpp.
template <class T>
struct StepLaunches {
    void (*start)(const StepState<T>& a, const T* y0, const T* k1, const Stream& stream);
    void (*probe)(const StepState<T>& a, T* t, T* y, const Stream& stream);
    void (*choose)(const StepState<T>& a, const T* value, const Stream& stream);
    void (*stage)(const StepState<T>& a, const Terms<T>& terms, int i, double c, const T* value, T* t, T* y,
                  const Stream& stream);
    void (*finish)(const StepState<T>& a, const Terms<T>& error, const T* y1, const T* last, const Stream& stream);
    void (*states)(const WalkState<T>& a, int64_t j, int64_t n, T* y, const Stream& stream);
    void (*steps)(const WalkState<T>& a, int64_t j, int64_t n, double* t, double* h, const Stream& stream);
    void (*mark_inside)(const WalkState<T>& a, int64_t n, bool* inside, const Stream& stream);
    void (*outputs)(const WalkState<T>& a, int64_t j, int64_t n, T* p, T* g, const Stream& stream);
    void (*combine)(const Terms<T>& terms, const T* base, const double* scale, T* out, int64_t n, int64_t width,
                    const Stream& stream);
};

template <class Programs, class T>
constexpr StepLaunches<T> launches_of() {
    return {Programs::start,  Programs::probe, Programs::choose,      Programs::stage,   Programs::finish,
            Programs::states, Programs::steps, Programs::mark_inside, Programs::outputs, Programs::combine};
}

extern const StepLaunches<float> host_step_launches_f32;
extern const StepLaunches<double> host_step_launches_f64;
#if FASTODE_HAVE_CUDA
extern const StepLaunches<float> cuda_step_launches_f32;
extern const StepLaunches<double> cuda_step_launches_f64;
#endif

}  // namespace fastode
