// The fused discrete adjoint of a batch, and the pullback of one evaluation.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/tile/leaves.h"
#include "cpu/tile/method.h"
#include "cpu/tile/program.h"

namespace fastode {

// Where gradients go, on the caller's memory. Pointers to leaves may be null.
template <class T>
struct TileGradients {
    T* y0;                   // (batch, dim)
    std::vector<T*> shared;  // each of its size
    std::vector<T*> params;  // each (batch, size)
};

template <class T>
struct TileAdjoint {
    int64_t batch, n_times;
    const double* times;
    int64_t row_stride, sample_stride;
    TileLeaves<T> leaves;
    const int64_t* offsets;        // (batch + 1)
    const double* table;           // (steps, 3): t, t_next, h
    const int64_t* state_offsets;  // (batch + 1)
    const T* states;               // (states, dim)
    int64_t every;
    const uint8_t* solved;  // (batch,), null: all
    const T* grad_ys;       // (n_times, batch, dim)
    TileGradients<T> gradients;
    int threads;

    double time(int64_t e, int64_t sample) const { return times[e * row_stride + sample * sample_stride]; }
};

template <class T>
void tile_adjoint(const TileProgram& program, const TileMethod& method, const TileAdjoint<T>& adjoint);

// The field at (t, y) for all samples, and its pullback of g. owner: of which sample the leaves are, where points are
// not samples.
template <class T>
void tile_evaluate(const TileProgram& program, int64_t batch, const double* t, const T* y, const TileLeaves<T>& leaves,
                   T* out, int threads, const int64_t* owner = nullptr);
template <class T>
void tile_vjp(const TileProgram& program, int64_t batch, const double* t, const T* y, const T* g,
              const TileLeaves<T>& leaves, const TileGradients<T>& gradients, int threads);

}  // namespace fastode
