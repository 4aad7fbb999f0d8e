// Matrix times vector for one sample: SIMD across components.
#pragma once

#include "cpu/isa/vec.h"

namespace fastode::FASTODE_ISA {
namespace {

// out[i] = c[i] + sum_j a[i + j * a_column] b[j * b_step], i < m, columns of a contiguous. c may be null or out.
template <class T>
struct ColumnProduct {
    T* out;
    const T *a, *b, *c;
    int64_t a_column, b_step, m, k;
};

// Several vectors of the result at once, and several columns apart, so that enough sums are under way to hide the
// latency of an addition.
template <class T, int kVectors, int kColumns>
FASTODE_INLINE void column_block(const ColumnProduct<T>& p, int64_t row) {
    constexpr int W = Simd<T>::W;
    Vec<T> sum[kColumns][kVectors];
    for (int u = 0; u < kColumns; ++u) {
        for (int v = 0; v < kVectors; ++v) {
            sum[u][v] = u == 0 && p.c != nullptr ? load<T>(p.c + row + v * W) : Vec<T>{};
        }
    }
    const T* a = p.a + row;
    const T* b = p.b;
    int64_t j = 0;
    for (; j + kColumns <= p.k; j += kColumns, a += kColumns * p.a_column, b += kColumns * p.b_step) {
        for (int u = 0; u < kColumns; ++u) {
            const Vec<T> x = splat<T>(b[u * p.b_step]);
            for (int v = 0; v < kVectors; ++v) {
                sum[u][v] = fma(load<T>(a + u * p.a_column + v * W), x, sum[u][v]);
            }
        }
    }
    for (; j < p.k; ++j, a += p.a_column, b += p.b_step) {
        const Vec<T> x = splat<T>(*b);
        for (int v = 0; v < kVectors; ++v) sum[0][v] = fma(load<T>(a + v * W), x, sum[0][v]);
    }
    for (int v = 0; v < kVectors; ++v) {
        Vec<T> total = sum[0][v];
        for (int u = 1; u < kColumns; ++u) total = total + sum[u][v];
        const int64_t at = row + v * W;
        if (at + W <= p.m) {
            store<T>(p.out + at, total);
        } else {
            store_part<T>(p.out + at, total, p.m - at);
        }
    }
}

template <class T>
void column_product(const ColumnProduct<T>& p) {
    constexpr int W = Simd<T>::W;
    int64_t row = 0;
    for (; row + 7 * W < p.m; row += 8 * W) column_block<T, 8, 1>(p, row);
    for (; row + 3 * W < p.m; row += 4 * W) column_block<T, 4, 2>(p, row);
    for (; row + W < p.m; row += 2 * W) column_block<T, 2, 4>(p, row);
    for (; row < p.m; row += W) column_block<T, 1, 4>(p, row);
}

// out[i * out_step] = c[i * c_step] + sum_j a[i * a_row + j] b[j], rows of a contiguous.
template <class T>
struct DotProduct {
    T* out;
    const T *a, *b, *c;
    int64_t out_step, c_step, a_row, m, k;
};

template <class T>
FASTODE_INLINE Mask<T> first_lanes(int64_t count) {
    Mask<T> mask;
    for (int i = 0; i < Simd<T>::W; ++i) mask[i] = i < count ? -1 : 0;
    return mask;
}

// The sums of the lanes of each of eight vectors.
FASTODE_INLINE void sum_lanes_of_8(const F32* x, float* out) {
#if defined(__AVX2__)
    __m256 r[8];
    for (int i = 0; i < 8; ++i) {
#if defined(__AVX512F__)
        __m256 halves[2];
        __builtin_memcpy(halves, x + i, sizeof halves);
        r[i] = _mm256_add_ps(halves[0], halves[1]);
#else
        r[i] = x[i];
#endif
    }
    for (int i = 0; i < 4; ++i) r[i] = _mm256_hadd_ps(r[2 * i], r[2 * i + 1]);
    for (int i = 0; i < 2; ++i) r[i] = _mm256_hadd_ps(r[2 * i], r[2 * i + 1]);
    _mm256_storeu_ps(out,
                     _mm256_add_ps(_mm256_permute2f128_ps(r[0], r[1], 0x20), _mm256_permute2f128_ps(r[0], r[1], 0x31)));
#else
    for (int i = 0; i < 8; ++i) out[i] = lane_sum<float>(x[i]);
#endif
}
FASTODE_INLINE void sum_lanes_of_8(const F64* x, double* out) {
    for (int i = 0; i < 8; ++i) out[i] = lane_sum<double>(x[i]);
}

template <class T, int kRows>
FASTODE_INLINE void dot_block(const DotProduct<T>& p, int64_t row, Mask<T> rest) {
    constexpr int W = Simd<T>::W;
    Vec<T> sum[kRows] = {};
    const T* a = p.a + row * p.a_row;
    int64_t j = 0;
    for (; j + W <= p.k; j += W) {
        const Vec<T> x = load<T>(p.b + j);
        for (int r = 0; r < kRows; ++r) sum[r] = fma(load<T>(a + r * p.a_row + j), x, sum[r]);
    }
    if (j < p.k) {
        const Vec<T> x = keep_if<T>(rest, load<T>(p.b + j));
        for (int r = 0; r < kRows; ++r) sum[r] = fma(keep_if<T>(rest, load<T>(a + r * p.a_row + j)), x, sum[r]);
    }
    T totals[kRows];
    if constexpr (kRows == 8) {
        sum_lanes_of_8(sum, totals);
    } else {
        for (int r = 0; r < kRows; ++r) totals[r] = lane_sum<T>(sum[r]);
    }
    for (int r = 0; r < kRows; ++r) {
        const T start = p.c == nullptr ? T(0) : p.c[(row + r) * p.c_step];
        p.out[(row + r) * p.out_step] = start + totals[r];
    }
}

template <class T>
void dot_product(const DotProduct<T>& p) {
    const Mask<T> rest = first_lanes<T>(p.k % Simd<T>::W);
    int64_t row = 0;
    for (; row + 8 <= p.m; row += 8) dot_block<T, 8>(p, row, rest);
    for (; row < p.m; ++row) dot_block<T, 1>(p, row, rest);
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
