// A Runge-Kutta method as the fused backend reads it: first-same-as-last, terms without their zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/tile/kernels.h"
#include "cpu/tile/program.h"

namespace fastode {

struct TileMethod {
    int s = 0, degree = 0;
    std::vector<double> c, a, b, e, q;  // a (s, s), q (s, degree); e may be empty

    double a_at(int i, int j) const { return a[static_cast<size_t>(i * s + j)]; }
    double q_at(int i, int m) const { return q[static_cast<size_t>(i * degree + m)]; }
};

// Appends coef * x unless the coefficient is zero: a NaN there must not spread.
template <class T>
void add_term(TileTerms<T>& terms, double coef, const T* x) {
    if (coef == 0.0) return;
    terms.coef[terms.n] = static_cast<T>(coef);
    terms.x[terms.n++] = x;
}

inline const TileStage<float>& stage_kernels(const float*) { return tile_stage_kernels().f32; }
inline const TileStage<double>& stage_kernels(const double*) { return tile_stage_kernels().f64; }
inline const TileStepping<float>& stepping_kernels(const float*) { return tile_stepping_kernels().f32; }
inline const TileStepping<double>& stepping_kernels(const double*) { return tile_stepping_kernels().f64; }
inline void run_code(const TileCode& code, const TileFrame<float>* const* frames, int64_t n) {
    tile_run_kernels().f32(code.data(), static_cast<int64_t>(code.size()), frames, n);
}
inline void run_code(const TileCode& code, const TileFrame<double>* const* frames, int64_t n) {
    tile_run_kernels().f64(code.data(), static_cast<int64_t>(code.size()), frames, n);
}
template <class T>
void run_code(const TileCode& code, const TileFrame<T>& frame) {
    const TileFrame<T>* only = &frame;
    run_code(code, &only, 1);
}
inline void run_accumulate(const TileCode& code, const TileFrame<float>* const* frames, int64_t n) {
    tile_accumulate_kernels().f32(code.data(), static_cast<int64_t>(code.size()), frames, n);
}
inline void run_accumulate(const TileCode& code, const TileFrame<double>* const* frames, int64_t n) {
    tile_accumulate_kernels().f64(code.data(), static_cast<int64_t>(code.size()), frames, n);
}

}  // namespace fastode
