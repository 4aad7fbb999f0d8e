// Matrix products of a tile in lanes layout: SIMD across samples.
#pragma once

#include "cpu/isa/vec.h"

namespace fastode::FASTODE_ISA {
namespace {

// Pointers to the first element and distances in elements. c may be null; it may be out; c_number: one number a row.
template <class T>
struct LaneProduct {
    T* out;
    const T *a, *b, *c;
    int64_t out_row, a_row, a_column, b_row, c_row;
    bool c_number;
    int64_t m, k, columns;  // columns are contiguous: lanes, or lanes of several columns of b
};

#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 8, kVectorsAtOnce = 2;
#else
constexpr int kRowsAtOnce = 4, kVectorsAtOnce = 2;
#endif

// kRows rows by kVectors vectors of the result in registers. kWeights: a is one number for all lanes.
template <class T, bool kWeights, int kRows, int kVectors>
FASTODE_INLINE void lane_block(const LaneProduct<T>& p, int64_t row, int64_t column) {
    constexpr int W = Simd<T>::W;
    Vec<T> sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
            if (p.c == nullptr) {
                sum[r][v] = Vec<T>{};
            } else {
                const T* start = p.c + (row + r) * p.c_row;
                sum[r][v] = p.c_number ? splat<T>(*start) : load<T>(start + column + v * W);
            }
        }
    }
    const T* a = p.a + row * p.a_row + (kWeights ? 0 : column);
    const T* b = p.b + column;
    for (int64_t j = 0; j < p.k; ++j, a += p.a_column, b += p.b_row) {
        Vec<T> x[kVectors];
        for (int v = 0; v < kVectors; ++v) x[v] = load<T>(b + v * W);
        for (int r = 0; r < kRows; ++r) {
            const T* weights = a + r * p.a_row;
            for (int v = 0; v < kVectors; ++v) {
                const Vec<T> w = kWeights ? splat<T>(*weights) : load<T>(weights + v * W);
                sum[r][v] = fma(w, x[v], sum[r][v]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) store<T>(p.out + (row + r) * p.out_row + column + v * W, sum[r][v]);
    }
}

template <class T, bool kWeights, int kVectors>
FASTODE_INLINE void lane_rows(const LaneProduct<T>& p, int64_t column) {
    constexpr int kRows = kWeights && kVectors == 2 ? kRowsAtOnce + 2 : 2 * kRowsAtOnce / kVectors;
    int64_t row = 0;
    for (; row + kRows <= p.m; row += kRows) lane_block<T, kWeights, kRows, kVectors>(p, row, column);
    for (; row + 4 <= p.m; row += 4) lane_block<T, kWeights, 4, kVectors>(p, row, column);
    for (; row + 2 <= p.m; row += 2) lane_block<T, kWeights, 2, kVectors>(p, row, column);
    for (; row < p.m; ++row) lane_block<T, kWeights, 1, kVectors>(p, row, column);
}

template <class T, bool kWeights>
void lane_product(const LaneProduct<T>& p) {
    constexpr int W = Simd<T>::W;
    int64_t column = 0;
    for (; column + kVectorsAtOnce * W <= p.columns; column += kVectorsAtOnce * W) {
        lane_rows<T, kWeights, kVectorsAtOnce>(p, column);
    }
    for (; column < p.columns; column += W) lane_rows<T, kWeights, 1>(p, column);
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
