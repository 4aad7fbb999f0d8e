#include "cpu/isa/vec.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

// f(at, factor) for the place of each vector of a tile, components by lanes or slots by components. Slots, and lanes,
// are independent of each other.
template <class T, class F>
FASTODE_INLINE void over_vectors(const TileTerms<T>& t, const T* scale, F f) {
    constexpr int W = Simd<T>::W;
    if (t.lanes == 1) {
        const TileSlots slots = t.slots;
        const int64_t width = t.width;
        for (int64_t s = 0; s < slots.n; ++s) {
            const int64_t start = slots.at[s] * slots.stride;
            const Vec<T> factor = splat<T>(scale == nullptr ? T(1) : scale[slots.at[s]]);
            for (int64_t i = 0; i < width; i += W) f(start + i, factor);
        }
        return;
    }
    const int64_t width = t.width, lanes = t.lanes, active = t.active;
    for (int64_t row = 0; row < width; ++row) {
        for (int64_t lane = 0; lane < active; lane += W) {
            f(row * lanes + lane, scale == nullptr ? splat<T>(T(1)) : load<T>(scale + lane));
        }
    }
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
    const LocalTerms<T, kTerms> terms(t);
    if (base != nullptr) {  // a factor of one changes no bit
        over_vectors<T>(t, scale, [&](int64_t at, Vec<T> factor) {
            store<T>(out + at, fma(factor, terms.sum(at), load<T>(base + at)));
        });
    } else {
        over_vectors<T>(t, scale, [&](int64_t at, Vec<T> factor) { store<T>(out + at, factor * terms.sum(at)); });
    }
}

template <class T>
void combine(const TileTerms<T>& t, T* out, const T* base, const T* scale) {
    switch (t.n) {
        case 0:
            return over_vectors<T>(t, nullptr, [&](int64_t at, Vec<T>) {
                store<T>(out + at, base != nullptr ? load<T>(base + at) : Vec<T>{});
            });
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
    [[gnu::always_inline]] double total() const { return lane_sum<double>(sum.low + sum.high); }
};
template <>
struct Wide<double> {
    F64 sum{};
    [[gnu::always_inline]] void add_square(F64 x) { sum = fma(x, x, sum); }
    [[gnu::always_inline]] void write(double* out) const { store<double>(out, sum); }
    [[gnu::always_inline]] double total() const { return lane_sum<double>(sum); }
};

// One vector of error over tolerance; `poison` becomes NaN where the new state is not finite. Reads n at `at` but for
// the tolerances, which are those of the vector's components.
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
void norm_rows(const TileTerms<T>& t, const TileNorm<T>& n, double* out) {
    constexpr int W = Simd<T>::W;
    const LocalTerms<T, kTerms> terms(t);
    const TileSlots slots = t.slots;
    const int64_t width = t.width;
    const double per_component = 1.0 / static_cast<double>(width > 0 ? width : 1);
    Mask<T> inside;  // of the last vector
    for (int l = 0; l < W; ++l) inside[l] = (width - 1) / W * W + l < width ? -1 : 0;
    for (int64_t s = 0; s < slots.n; ++s) {
        const int64_t start = slots.at[s] * slots.stride;
        const Vec<T> factor = splat<T>(n.scale[slots.at[s]]);
        Wide<T> sum;
        Vec<T> poison{};
        for (int64_t i = 0; i < width; i += W) {
            Vec<T> spoilt{};
            Vec<T> ratio =
                error_ratio<T, kTerms>(terms, n, start + i, factor, load<T>(n.rtol + i), load<T>(n.atol + i), spoilt);
            if (i + W > width) {
                ratio = keep_if<T>(inside, ratio);
                spoilt = keep_if<T>(inside, spoilt);
            }
            sum.add_square(ratio);
            poison = poison + spoilt;
        }
        out[slots.at[s]] = __builtin_sqrt(sum.total() * per_component) + static_cast<double>(lane_sum<T>(poison));
    }
}

template <class T>
void norm(const TileTerms<T>& t, const TileNorm<T>& n, double* out) {
    const bool row = t.lanes == 1;
    switch (t.n) {
        case 1: return row ? norm_rows<T, 1>(t, n, out) : norm_lanes<T, 1>(t, n, out);
        case 4: return row ? norm_rows<T, 4>(t, n, out) : norm_lanes<T, 4>(t, n, out);
        case 6: return row ? norm_rows<T, 6>(t, n, out) : norm_lanes<T, 6>(t, n, out);
        default: return row ? norm_rows<T, 0>(t, n, out) : norm_lanes<T, 0>(t, n, out);
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
