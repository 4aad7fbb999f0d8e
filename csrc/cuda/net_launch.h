// Whole solves with per-sample weight matrices as functions: the same twice, on a GPU and, for tests, on the host.
#pragma once

#include "cuda/net_state.h"
#include "cuda/step_launch.h"

namespace fastode {

// How one kind of executor runs them. The adjoint's scratch has a place for each group; `groups` says how many there
// are.
template <class T>
struct NetLaunches {
    void (*forward)(const NetSolve<T>& solve, const Stream& stream);
    void (*backward)(const NetAdjoint<T>& adjoint, const Stream& stream);
    int64_t (*groups)(int dim, int layers, int s, int64_t batch, const Stream& stream);
};

// The padded size that kernels exist for: 8, 16, ..., 512; 0 if there is none.
inline int net_dimension(int widest) {
    int dim = 8;
    while (dim < widest) dim *= 2;
    return dim <= kNetWidest ? dim : 0;
}

// Whether there are kernels for this size and number of layers.
inline bool net_supported(int dim, int layers) { return dim > 0 && layers >= 1 && layers <= kNetLayers; }

template <class T>
inline int widest_of(const NetLayer<T>* layer, int layers) {
    int widest = 1;
    for (int l = 0; l < layers; ++l) {
        const int own = layer[l].rows > layer[l].cols ? layer[l].rows : layer[l].cols;
        widest = own > widest ? own : widest;
    }
    return widest;
}

extern const NetLaunches<float> host_net_launches_f32;
extern const NetLaunches<double> host_net_launches_f64;
#if FASTODE_HAVE_CUDA
extern const NetLaunches<float> cuda_net_launches_f32;
extern const NetLaunches<double> cuda_net_launches_f64;
#endif

}  // namespace fastode
