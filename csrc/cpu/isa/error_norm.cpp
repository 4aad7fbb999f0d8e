#include "cpu/error_norm.h"

#include "core/isa_math.h"

namespace fastode::FASTODE_ISA {
namespace {

constexpr int64_t kLanes = 16;  // partial sums of a row, added up in a fixed order

constexpr float kTiny32 = 1.17549435e-38F;
constexpr double kTiny64 = 2.2250738585072014e-308;

[[gnu::always_inline]] inline float magnitude(float x) { return __builtin_fabsf(x); }
[[gnu::always_inline]] inline double magnitude(double x) { return __builtin_fabs(x); }

// Square of numerator / tolerance of one element; `poison` becomes NaN if the new state is not finite.
template <class T>
[[gnu::always_inline]] inline double element(const ErrorNormArgs<T>& a, T factor, T tiny, int64_t row, int64_t i,
                                             double& poison) {
    const int64_t at = row + i;
    T sum = T(0);
    for (int j = 0; j < a.n_terms; ++j) sum = multiply_add(a.coef[j], a.x[j][at], sum);
    const T y1 = a.y1[at], last = a.last[at];
    const T old_size = magnitude(a.y[at]), new_size = magnitude(y1);
    const T size = new_size > old_size ? new_size : old_size;
    const T raw = multiply_add(a.rtol[i], size, a.atol[i]);
    const T tolerance = raw > tiny ? raw : tiny;
    poison += static_cast<double>((y1 - y1) + (last - last));
    const auto quotient = static_cast<double>(factor * sum / tolerance);
    return quotient * quotient;
}

template <class T>
void error_norm(const ErrorNormArgs<T>& a, double* out, int64_t begin, int64_t end) {
    const T tiny = sizeof(T) == 4 ? static_cast<T>(kTiny32) : static_cast<T>(kTiny64);
    for (int64_t r = begin; r < end; ++r) {
        const int64_t row = r * a.d;
        const T factor = static_cast<T>(a.scale[r]);
        double sum[kLanes] = {};
        double poison[kLanes] = {};
        int64_t i = 0;
        for (; i + kLanes <= a.d; i += kLanes) {
            for (int64_t k = 0; k < kLanes; ++k) sum[k] += element(a, factor, tiny, row, i + k, poison[k]);
        }
        for (int64_t k = 0; i < a.d; ++i, ++k) sum[k] += element(a, factor, tiny, row, i, poison[k]);
        double total = 0, poisoned = 0;
        for (int64_t k = 0; k < kLanes; ++k) {
            total += sum[k];
            poisoned += poison[k];
        }
        const double mean = total / static_cast<double>(a.d > 0 ? a.d : 1);
        out[r] = __builtin_sqrt(mean) + poisoned;
    }
}

}  // namespace

const ErrorNormKernels error_norm_kernels = {error_norm<float>, error_norm<double>};

}  // namespace fastode::FASTODE_ISA
