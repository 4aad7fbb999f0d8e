// Root mean squares over the state of each sample, in float64 whatever the state's type.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "cpu/combine.h"

namespace fastode {

// Rows are contiguous, d elements each. All ratios are against the tolerance atol + rtol max(|y|, |y1|).
template <class T>
struct ErrorNormArgs {
    const T* y;
    const T* y1;          // may be y
    const T* rtol;        // (d,)
    const T* atol;        // (d,)
    const T* last;        // another row that must be finite; may be y1
    const double* scale;  // per row: the numerator is scale[r] * sum_j coef[j] x_j[r, :]
    int n_terms;
    T coef[kMaxTerms];
    const T* x[kMaxTerms];
    int64_t d;
};

// out[r] for rows [begin, end): the root mean square of numerator / tolerance; NaN if y1 or last is not finite.
struct ErrorNormKernels {
    void (*f32)(const ErrorNormArgs<float>& args, double* out, int64_t begin, int64_t end);
    void (*f64)(const ErrorNormArgs<double>& args, double* out, int64_t begin, int64_t end);
};

FASTODE_ISA_TABLE(ErrorNormKernels, error_norm_kernels)

}  // namespace fastode
