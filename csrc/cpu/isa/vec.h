// Vectors of the width of the instruction set, through the compiler's vector extensions. For files under isa/ only.
#pragma once

#include <cstdint>

#include "core/isa_math.h"

// Full masks with zeroing on AVX-512: the unmasked intrinsics of GCC 12 warn of a variable that is never read.
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FASTODE_INLINE [[maybe_unused, gnu::always_inline]] inline

namespace fastode::FASTODE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float F32 __attribute__((vector_size(kVectorBytes)));
typedef double F64 __attribute__((vector_size(kVectorBytes)));
typedef int32_t I32 __attribute__((vector_size(kVectorBytes)));
typedef int64_t I64 __attribute__((vector_size(kVectorBytes)));

// The vectors of an element type, their masks (all bits or none) and what their exponent arithmetic needs.
template <class T>
struct Simd;
template <>
struct Simd<float> {
    using V = F32;
    using I = I32;
    using Int = int32_t;
    static constexpr int W = kVectorBytes / 4, mantissa = 23, bias = 127;
    static constexpr float shifter = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
};
template <>
struct Simd<double> {
    using V = F64;
    using I = I64;
    using Int = int64_t;
    static constexpr int W = kVectorBytes / 8, mantissa = 52, bias = 1023;
    static constexpr double shifter = 6755399441055744.0;
};
template <class T>
using Vec = typename Simd<T>::V;
template <class T>
using Mask = typename Simd<T>::I;

template <class T>
FASTODE_INLINE Vec<T> load(const T* p) {
    Vec<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
template <class T>
FASTODE_INLINE void store(T* p, Vec<T> v) {
    __builtin_memcpy(p, &v, sizeof v);
}
template <class T>
FASTODE_INLINE void store_part(T* p, Vec<T> v, int64_t count) {
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}
#if defined(__AVX512F__)
template <>
FASTODE_INLINE void store_part<float>(float* p, F32 v, int64_t count) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1U << count) - 1), v);
}
template <>
FASTODE_INLINE void store_part<double>(double* p, F64 v, int64_t count) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1U << count) - 1), v);
}
#endif
template <class T>
FASTODE_INLINE Vec<T> splat(T x) {
    return x - Vec<T>{};
}
template <class T>
FASTODE_INLINE Mask<T> splat_int(typename Simd<T>::Int x) {
    return x - Mask<T>{};
}

FASTODE_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return (F32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
FASTODE_INLINE F64 fma(F64 a, F64 b, F64 c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
    return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
    return (F64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

// One rounding, or the exact product and sum of it, is what these compute with: pow needs to know.
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__)) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

FASTODE_INLINE F32 square_root(F32 x) {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_ps(0xffff, x);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
    return _mm_sqrt_ps(x);
#else
    for (int i = 0; i < Simd<float>::W; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}
FASTODE_INLINE F64 square_root(F64 x) {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_pd(0xff, x);
#elif defined(__AVX2__)
    return _mm256_sqrt_pd(x);
#elif defined(__SSE2__)
    return _mm_sqrt_pd(x);
#else
    for (int i = 0; i < Simd<double>::W; ++i) x[i] = __builtin_sqrt(x[i]);
    return x;
#endif
}

template <class T>
FASTODE_INLINE Vec<T> select(Mask<T> mask, Vec<T> yes, Vec<T> no) {
    return mask ? yes : no;
}
template <class T>
FASTODE_INLINE Vec<T> keep_if(Mask<T> mask, Vec<T> x) {  // x or 0
    return (Vec<T>)(mask & (Mask<T>)x);
}
template <class T>
FASTODE_INLINE Vec<T> sign_bit(Vec<T> x) {
    return (Vec<T>)((Mask<T>)x & (Mask<T>)splat<T>(T(-0.0)));
}
template <class T>
FASTODE_INLINE Vec<T> absolute(Vec<T> x) {
    return (Vec<T>)((Mask<T>)x & ~(Mask<T>)splat<T>(T(-0.0)));
}
template <class T>
FASTODE_INLINE Vec<T> with_sign(Vec<T> magnitude, Vec<T> sign) {
    return (Vec<T>)((Mask<T>)magnitude | (Mask<T>)sign_bit<T>(sign));
}
// a < b ? a : b and a > b ? a : b: b where either is NaN.
template <class T>
FASTODE_INLINE Vec<T> lesser(Vec<T> a, Vec<T> b) {
    return a < b ? a : b;
}
template <class T>
FASTODE_INLINE Vec<T> greater(Vec<T> a, Vec<T> b) {
    return a > b ? a : b;
}
template <class T>
FASTODE_INLINE bool any(Mask<T> mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    typename Simd<T>::Int found = 0;
    for (int i = 0; i < Simd<T>::W; ++i) found |= mask[i];
    return found != 0;
#endif
}

// 2^n for integers n held as x + shifter, within the exponents of normal numbers.
template <class T>
FASTODE_INLINE Vec<T> power_of_two(Mask<T> n) {
    return (Vec<T>)((n + splat_int<T>(Simd<T>::bias)) << Simd<T>::mantissa);
}

// Coefficients from the highest power to the lowest.
template <class T, int N>
FASTODE_INLINE Vec<T> polynomial(Vec<T> x, const T (&c)[N]) {
    Vec<T> sum = splat<T>(c[0]);
    for (int i = 1; i < N; ++i) sum = fma(sum, x, splat<T>(c[i]));
    return sum;
}

// f(lane) for each lane by itself: for functions that are rare or take a rare branch.
template <class T, class F>
FASTODE_INLINE Vec<T> each(Vec<T> x, F f) {
    alignas(kVectorBytes) T lanes[Simd<T>::W];
    store<T>(lanes, x);
    for (int i = 0; i < Simd<T>::W; ++i) lanes[i] = f(lanes[i], i);
    return load<T>(lanes);
}

// The lower and upper half of a vector of float as double, and back.
struct Pair64 {
    F64 low, high;
};
FASTODE_INLINE Pair64 widen(F32 x) {
#if defined(__AVX512F__)
    __m256 halves[2];
    __builtin_memcpy(halves, &x, sizeof x);
    return {_mm512_maskz_cvtps_pd(0xff, halves[0]), _mm512_maskz_cvtps_pd(0xff, halves[1])};
#elif defined(__AVX2__)
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
#else
    Pair64 wide;
    for (int i = 0; i < Simd<double>::W; ++i) {
        wide.low[i] = static_cast<double>(x[i]);
        wide.high[i] = static_cast<double>(x[i + Simd<double>::W]);
    }
    return wide;
#endif
}
FASTODE_INLINE F32 narrow(Pair64 x) {
#if defined(__AVX512F__)
    const __m256 halves[2] = {_mm512_maskz_cvtpd_ps(0xff, x.low), _mm512_maskz_cvtpd_ps(0xff, x.high)};
    F32 result;
    __builtin_memcpy(&result, halves, sizeof result);
    return result;
#elif defined(__AVX2__)
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(x.low)), _mm256_cvtpd_ps(x.high), 1);
#else
    F32 result;
    for (int i = 0; i < Simd<double>::W; ++i) {
        result[i] = static_cast<float>(x.low[i]);
        result[i + Simd<double>::W] = static_cast<float>(x.high[i]);
    }
    return result;
#endif
}

// The sum of all lanes: the upper half is added to the lower one, and so on.
template <class T>
FASTODE_INLINE T lane_sum(Vec<T> x) {
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)
        __m256 halves[2];
        __builtin_memcpy(halves, &x, sizeof x);
        const __m256 half = _mm256_add_ps(halves[0], halves[1]);
#else
        const auto half = (__m256)x;
#endif
        const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
    } else {
#if defined(__AVX512F__)
        __m256d halves[2];
        __builtin_memcpy(halves, &x, sizeof x);
        const __m256d half = _mm256_add_pd(halves[0], halves[1]);
#else
        const auto half = (__m256d)x;
#endif
        const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
        return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
    }
#else
    alignas(kVectorBytes) T lanes[Simd<T>::W];
    store<T>(lanes, x);
    for (int half = Simd<T>::W / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
#endif
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
