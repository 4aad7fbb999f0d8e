// Loops of pointwise instructions over a tile.
#pragma once

#include "cpu/isa/vec.h"
#include "cpu/tile/instruction.h"

namespace fastode::FASTODE_ISA {
namespace {

// A tile value as rows of contiguous elements: components by lanes, or everything in one row where that is contiguous.
template <class T>
struct TileLoop {
    int64_t rows, columns, stride;  // of the output
};

template <class T>
FASTODE_INLINE TileLoop<T> whole_loop(const TileFrame<T>& f, int64_t n0, bool flat) {
    if (flat && f.active == f.lanes) return {1, n0 * f.lanes, 0};
    return {n0, f.active, f.lanes};
}

// An operand in such a loop: a vector per place, or one number per row. `step` is its distance between rows.
template <class T>
struct TileSource {
    const T* at;
    int64_t step;
    bool scalar;

    template <bool kScalar>
    [[gnu::always_inline]] Vec<T> get(int64_t row, int64_t column) const {
        if constexpr (kScalar) {
            return splat<T>(at[row * step]);
        } else {
            return load<T>(at + row * step + column);
        }
    }
};

// Whether an operand of n0 components lies like the output, so that the rows may be joined.
template <class T>
FASTODE_INLINE bool lies_flat(const TileFrame<T>& f, const TileOperand& x) {
    if (x.base == base_imm) return true;
    if (x.base == base_shared) return x.s0 == 0 || f.lanes == 1;
    return x.s0 != 0 || (f.lanes == 1);
}

template <class T>
FASTODE_INLINE TileSource<T> source(const TileFrame<T>& f, const TileOperand& x, const T* imm) {
    if (x.base == base_imm) return {imm, 0, true};
    const T* at = f.at(x);
    if (f.lanes == 1) return {at, 0, x.s0 == 0};
    if (x.base == base_shared) return {at, x.s0, true};
    return {at, x.s0 * f.lanes, false};
}

// out = f(place) vector by vector. Reading past the end of a row is harmless, writing is not.
template <class T, class F>
FASTODE_INLINE void over_tile(T* out, const TileLoop<T>& loop, F f) {
    constexpr int W = Simd<T>::W;
    for (int64_t row = 0; row < loop.rows; ++row) {
        T* to = out + row * loop.stride;
        int64_t column = 0;
        for (; column + W <= loop.columns; column += W) store<T>(to + column, f(row, column));
        if (column < loop.columns) store_part<T>(to + column, f(row, column), loop.columns - column);
    }
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
