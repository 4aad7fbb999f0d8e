// The state of a solve by steps on a device: what its kernels are given. Plain C++: no CUDA headers needed.
#pragma once

#include <cstdint>

#include "core/step_control.h"

namespace fastode {

constexpr int kMostStages = 32;

// Rows of the table of real numbers, (kReals, batch). The attempt that is next is `step` long and leads to `target`;
// the one that was decided last was `size` long, from `from` to `to`.
enum Real : int {
    kTime,
    kNextSize,  // unsigned, before it is cut at the end
    kStep,
    kTarget,
    kFrom,
    kTo,
    kSize,
    kEnd,
    kDirection,
    kCut,  // 1 if the attempt was cut at the target
    kPrevious,
    kBefore,
    kProbeStep,
    kProbeSlope,
    kReals
};

// Rows of the table of integers, (kWholes, batch). Of the attempt decided last: whether it was accepted, which outputs
// it reached, the row of its step in the record and the row of the state at its start; -1 is none.
enum Whole : int {
    kStatus,
    kAccepted,
    kRejected,
    kEvals,
    kTaken,
    kFirstOutput,
    kNextOutput,
    kStepRow,
    kStateRow,
    kWholes
};

// Counters of the whole batch; the host polls them.
enum Counter : int {
    kRunning,  // samples on their way
    kGoingOn,  // not zero if the next attempt is not the last one of all of them
    kSteps,    // rows in the record
    kStates,   // states in it
    kCounters
};

// One accepted step, 48 bytes.
struct StepRow {
    int64_t sample, number, state_row;
    double t, t_next, h;
};

// sum_j coef[j] x_j; terms with a zero coefficient are left out, so that a NaN there does not spread.
template <class T>
struct Terms {
    int n = 0;
    T coef[kMostStages];
    const T* x[kMostStages];

    FASTODE_HOST_DEVICE void add(double c, const T* at) {
        if (c == 0.0) return;
        coef[n] = static_cast<T>(c);
        x[n++] = at;
    }
};

// Pointers belong to the caller. Lanes are rows of y and k; sample[lane] says whose.
template <class T>
struct StepState {
    int64_t batch, width, n_times, lanes, max_steps;
    int s, degree;
    bool adaptive;
    double first_step;        // 0 chooses
    const double* times;      // (n_times, batch)
    const double* step_size;  // (batch,), null when adaptive; infinite: from output time to output time
    const T* rtol;            // (width,)
    const T* atol;            // (width,)
    const double* q;          // (s, degree)
    T* ys;                    // (n_times, batch, width), filled with NaN
    const int64_t* sample;    // (lanes,)
    double* real;             // (kReals, batch)
    int64_t* whole;           // (kWholes, batch)
    int64_t* counters;        // (kCounters,)
    T* y;                     // (lanes, width)
    T* k;                     // (s - 1, batch, width), of which `lanes` rows are used
    double* partial;          // (lanes, chunks) sums of the error norm, where rows are worked on in chunks
    // The record, in chunks that the host allocates; null where nothing is recorded, or no dense output is wanted.
    StepRow* const* step_chunks;
    T* const* state_chunks;
    T* const* coef_chunks;  // (degree + 1, width) for every step
    int64_t steps_per_chunk, states_per_chunk;
    int64_t every;
    StepControl control;
};

// A recorded solve that is read back to front.
template <class T>
struct WalkState {
    int64_t batch, width, n_times, every, states_per_chunk;
    int degree;
    const double* times;     // (n_times, batch)
    const StepRow* table;    // sorted by sample and number
    const int64_t* offsets;  // (batch + 1,)
    const int64_t* sample;   // whose the lanes are
    T* const* state_chunks;
    const T* grad_ys;     // (n_times, batch, width)
    const T* grad_coefs;  // (steps, degree + 1, width), null if the dense output has no gradient
};

}  // namespace fastode
