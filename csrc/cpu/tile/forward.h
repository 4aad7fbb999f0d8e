// The fused forward solve of a batch.
#pragma once

#include <cstdint>

#include "core/step_control.h"
#include "cpu/tile/leaves.h"
#include "cpu/tile/method.h"
#include "cpu/tile/program.h"
#include "cpu/tile/record.h"

namespace fastode {

// What a solve is given and where its results go, on the caller's memory.
template <class T>
struct TileSolve {
    int64_t batch, n_times;
    const double* times;  // of output e of sample b: times[e * row_stride + b * sample_stride]
    int64_t row_stride, sample_stride;
    const T* y0;
    TileLeaves<T> leaves;
    const T *rtol, *atol;
    const double* step_size;  // per sample, null when adaptive
    double first_step;        // 0 chooses
    int64_t max_steps;
    T* ys;  // (n_times, batch, dim)
    int64_t *status, *n_accepted, *n_rejected, *n_evals;
    double *reached, *last_step, *last_ratio;  // of the last attempt its signed size and error ratio, or NaN
    T* k1;                                     // (batch, dim) or null
    int threads;

    double time(int64_t e, int64_t sample) const { return times[e * row_stride + sample * sample_stride]; }
};

// record may be null.
template <class T>
void tile_solve(const TileProgram& program, const TileMethod& method, const StepControl& control,
                const TileSolve<T>& solve, TileRecord<T>* record);

// How many threads a piece of work of so many nanoseconds is worth.
int threads_for(double ns, int threads);

}  // namespace fastode
