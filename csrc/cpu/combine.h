// out[r, :] = base[r, :] + scale[r] * sum_j coef[j] * x_j[r, :]: a Runge-Kutta stage, solution or error in one pass.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace fastode {

constexpr int kMaxTerms = 32;

// Rows are contiguous, d elements each. base and scale may be null (0 and 1). Terms with a zero coefficient are left
// out before this structure is filled, so that a NaN there does not spread.
template <class T>
struct CombineArgs {
    T* out;
    const T* base;
    const double* scale;
    int n_terms;
    T coef[kMaxTerms];
    const T* x[kMaxTerms];
    int64_t d;
};

// Rows [begin, end). A row's bits depend on its own inputs only: not on the range, nor on its place in it.
struct CombineKernels {
    void (*f32)(const CombineArgs<float>& args, int64_t begin, int64_t end);
    void (*f64)(const CombineArgs<double>& args, int64_t begin, int64_t end);
};

FASTODE_ISA_TABLE(CombineKernels, combine_kernels)

}  // namespace fastode
