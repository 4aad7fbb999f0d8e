#include "cpu/isa/vec.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

// A tile as rows of contiguous numbers that share their lanes' factors: components by lanes, or one row of components.
template <class T>
struct Shape {
    int64_t rows, columns, stride;
};
template <class T>
FASTODE_INLINE Shape<T> shape_of(int64_t width, int64_t lanes, int64_t active) {
    if (lanes == 1) return {1, width, 0};
    return {width, active, lanes};
}
template <class T>
FASTODE_INLINE Vec<T> factor_at(const T* scale, int64_t lanes, int64_t column) {
    return lanes == 1 ? splat<T>(*scale) : load<T>(scale + column);
}

// Terms in registers: a store to a tile could change the coefficients as far as the compiler knows.
template <class T, int kTerms>
struct LocalTerms {
    Vec<T> coef[kTerms];
    const T* x[kTerms];

    [[gnu::always_inline]] explicit LocalTerms(const TileTerms<T>& t) {
        for (int j = 0; j < kTerms; ++j) {
            coef[j] = splat<T>(t.coef[j]);
            x[j] = t.x[j];
        }
    }
    [[gnu::always_inline]] Vec<T> sum(int64_t at) const {
        Vec<T> total = load<T>(x[0] + at) * coef[0];
        for (int j = 1; j < kTerms; ++j) total = fma(coef[j], load<T>(x[j] + at), total);
        return total;
    }
};
// Any number of terms.
template <class T>
struct LocalTerms<T, 0> {
    const TileTerms<T>& t;

    [[gnu::always_inline]] explicit LocalTerms(const TileTerms<T>& terms) : t(terms) {}
    [[gnu::always_inline]] Vec<T> sum(int64_t at) const {
        if (t.n == 0) return Vec<T>{};
        Vec<T> total = load<T>(t.x[0] + at) * t.coef[0];
        for (int j = 1; j < t.n; ++j) total = fma(splat<T>(t.coef[j]), load<T>(t.x[j] + at), total);
        return total;
    }
};

template <class T, int kTerms>
void combine_terms(const TileTerms<T>& t, T* out, const T* base, const T* scale) {
    constexpr int W = Simd<T>::W;
    const LocalTerms<T, kTerms> terms(t);
    const Shape<T> shape = shape_of<T>(t.width, t.lanes, t.active);
    const int64_t lanes = t.lanes;
    for (int64_t row = 0; row < shape.rows; ++row) {
        for (int64_t column = 0; column < shape.columns; column += W) {
            const int64_t at = row * shape.stride + column;
            Vec<T> value = terms.sum(at);
            if (scale != nullptr) {
                const Vec<T> factor = factor_at<T>(scale, lanes, column);
                value = base != nullptr ? fma(factor, value, load<T>(base + at)) : factor * value;
            } else if (base != nullptr) {
                value = load<T>(base + at) + value;
            }
            if (column + W <= shape.columns) {
                store<T>(out + at, value);
            } else {
                store_part<T>(out + at, value, shape.columns - column);
            }
        }
    }
}

template <class T>
void combine(const TileTerms<T>& t, T* out, const T* base, const T* scale) {
    switch (t.n) {
        case 0: {
            const Shape<T> shape = shape_of<T>(t.width, t.lanes, t.active);
            for (int64_t row = 0; row < shape.rows; ++row) {
                for (int64_t column = 0; column < shape.columns; ++column) {
                    const int64_t at = row * shape.stride + column;
                    out[at] = base != nullptr ? base[at] : T(0);
                }
            }
            return;
        }
        case 1: return combine_terms<T, 1>(t, out, base, scale);
        case 2: return combine_terms<T, 2>(t, out, base, scale);
        case 3: return combine_terms<T, 3>(t, out, base, scale);
        case 4: return combine_terms<T, 4>(t, out, base, scale);
        case 5: return combine_terms<T, 5>(t, out, base, scale);
        case 6: return combine_terms<T, 6>(t, out, base, scale);
        default: return combine_terms<T, 0>(t, out, base, scale);
    }
}

// Sums in double of one vector of lanes.
template <class T>
struct Wide;
template <>
struct Wide<float> {
    Pair64 sum{};
    [[gnu::always_inline]] void add_square(F32 x) {
        const Pair64 wide = widen(x);
        sum.low = fma(wide.low, wide.low, sum.low);
        sum.high = fma(wide.high, wide.high, sum.high);
    }
    [[gnu::always_inline]] void write(double* out) const {
        store<double>(out, sum.low);
        store<double>(out + Simd<double>::W, sum.high);
    }
};
template <>
struct Wide<double> {
    F64 sum{};
    [[gnu::always_inline]] void add_square(F64 x) { sum = fma(x, x, sum); }
    [[gnu::always_inline]] void write(double* out) const { store<double>(out, sum); }
};

// One vector of error over tolerance; `poison` becomes NaN where the new state is not finite.
template <class T, int kTerms>
FASTODE_INLINE Vec<T> error_ratio(const LocalTerms<T, kTerms>& t, const TileNorm<T>& n, int64_t at, Vec<T> factor,
                                  Vec<T> rtol, Vec<T> atol, Vec<T>& poison) {
    constexpr T tiny = sizeof(T) == 4 ? T(1.17549435e-38F) : T(2.2250738585072014e-308);
    const Vec<T> y1 = load<T>(n.y1 + at), last = load<T>(n.last + at);
    poison = poison + ((y1 - y1) + (last - last));
    const Vec<T> size = greater<T>(absolute<T>(y1), absolute<T>(load<T>(n.y + at)));
    const Vec<T> raw = fma(rtol, size, atol);
    const Vec<T> tolerance = greater<T>(raw, splat<T>(tiny));
    return factor * t.sum(at) / tolerance;
}

template <class T, int kTerms>
void norm_lanes(const TileTerms<T>& t, const TileNorm<T>& n, double* out) {
    constexpr int W = Simd<T>::W;
    const LocalTerms<T, kTerms> terms(t);
    const auto width = static_cast<double>(t.width > 0 ? t.width : 1);
    for (int64_t lane = 0; lane < t.active; lane += W) {
        Wide<T> sum;
        Vec<T> poison{};
        const Vec<T> factor = load<T>(n.scale + lane);
        for (int64_t i = 0; i < t.width; ++i) {
            sum.add_square(error_ratio<T, kTerms>(terms, n, i * t.lanes + lane, factor, splat<T>(n.rtol[i]),
                                                  splat<T>(n.atol[i]), poison));
        }
        alignas(64) double squares_of[W];
        sum.write(squares_of);
        for (int l = 0; l < W; ++l) {
            out[lane + l] = __builtin_sqrt(squares_of[l] / width) + static_cast<double>(poison[l]);
        }
    }
}

template <class T, int kTerms>
void norm_row(const TileTerms<T>& t, const TileNorm<T>& n, double* out) {
    constexpr int W = Simd<T>::W;
    const LocalTerms<T, kTerms> terms(t);
    const Vec<T> factor = splat<T>(*n.scale);
    Wide<T> sum;
    Vec<T> poison{};
    for (int64_t i = 0; i < t.width; i += W) {
        Vec<T> spoilt{};
        Vec<T> ratio = error_ratio<T, kTerms>(terms, n, i, factor, load<T>(n.rtol + i), load<T>(n.atol + i), spoilt);
        if (i + W > t.width) {
            Mask<T> inside;
            for (int l = 0; l < W; ++l) inside[l] = i + l < t.width ? -1 : 0;
            ratio = keep_if<T>(inside, ratio);
            spoilt = keep_if<T>(inside, spoilt);
        }
        sum.add_square(ratio);
        poison = poison + spoilt;
    }
    alignas(64) double squares_of[W];
    sum.write(squares_of);
    double total = 0;
    for (int l = 0; l < W; ++l) total += squares_of[l];
    const auto width = static_cast<double>(t.width > 0 ? t.width : 1);
    *out = __builtin_sqrt(total / width) + static_cast<double>(lane_sum<T>(poison));
}

template <class T>
void norm(const TileTerms<T>& t, const TileNorm<T>& n, double* out) {
    const bool row = t.lanes == 1;
    switch (t.n) {
        case 4: return row ? norm_row<T, 4>(t, n, out) : norm_lanes<T, 4>(t, n, out);
        case 6: return row ? norm_row<T, 6>(t, n, out) : norm_lanes<T, 6>(t, n, out);
        default: return row ? norm_row<T, 0>(t, n, out) : norm_lanes<T, 0>(t, n, out);
    }
}

template <class T>
void blend(T* out, const T* fresh, const T* taken, int64_t width, int64_t lanes, int64_t active) {
    constexpr int W = Simd<T>::W;
    if (lanes == 1) {
        if (*taken != T(0)) __builtin_memcpy(out, fresh, static_cast<size_t>(width) * sizeof(T));
        return;
    }
    for (int64_t lane = 0; lane < active; lane += W) {
        const Mask<T> mask = load<T>(taken + lane) != T(0);
        for (int64_t i = 0; i < width; ++i) {
            const int64_t at = i * lanes + lane;
            store<T>(out + at, select<T>(mask, load<T>(fresh + at), load<T>(out + at)));
        }
    }
}

}  // namespace

const TileStageKernels tile_stage_kernels = {{combine<float>, norm<float>, blend<float>},
                                             {combine<double>, norm<double>, blend<double>}};

}  // namespace fastode::FASTODE_ISA
