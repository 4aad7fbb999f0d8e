// sin, cos, tan, erf and the rounding functions of vectors; what is rare goes to the C library, lane by lane.
#pragma once

#include "cpu/isa/vec_exp.h"

namespace fastode::FASTODE_ISA {
namespace {

// The C library's functions for either type.
#define FASTODE_LIBM(name)                                                       \
    FASTODE_INLINE float libm_##name(float x) { return __builtin_##name##f(x); } \
    FASTODE_INLINE double libm_##name(double x) { return __builtin_##name(x); }
FASTODE_LIBM(sin)
FASTODE_LIBM(cos)
FASTODE_LIBM(tan)
FASTODE_LIBM(asin)
FASTODE_LIBM(acos)
FASTODE_LIBM(atan)
FASTODE_LIBM(erfc)
FASTODE_LIBM(floor)
FASTODE_LIBM(ceil)
FASTODE_LIBM(trunc)
FASTODE_LIBM(rint)
#undef FASTODE_LIBM
FASTODE_INLINE float libm_atan2(float a, float b) { return __builtin_atan2f(a, b); }
FASTODE_INLINE double libm_atan2(double a, double b) { return __builtin_atan2(a, b); }
FASTODE_INLINE float libm_fmod(float a, float b) { return __builtin_fmodf(a, b); }
FASTODE_INLINE double libm_fmod(double a, double b) { return __builtin_fmod(a, b); }

template <class T>
struct TrigConstants;
template <>
struct TrigConstants<float> {
    static constexpr float limit = 6000.0F;  // below, n times each of the first parts of pi/2 is exact
    static constexpr float parts[] = {0x1.92p+0F, 0x1.fb4p-12F, 0x1.444p-24F, 0x1.68c234p-39F};
    static constexpr float sine[] = {-1.9515295891e-4F, 8.3321608736e-3F, -1.6666654611e-1F};
    static constexpr float cosine[] = {2.443315711809948e-5F, -1.388731625493765e-3F, 4.166664568298827e-2F};
};
template <>
struct TrigConstants<double> {
    static constexpr double limit = 1e6;
    static constexpr double parts[] = {0x1.921fb544p+0, 0x1.0b4611a6p-34, 0x1.3198a2e037073p-69, 0.0};
    static constexpr double sine[] = {1.58969099521155010221e-10, -2.50507602534068634195e-08,
                                      2.75573137070700676789e-06, -1.98412698298579493134e-04,
                                      8.33333333332248946124e-03, -1.66666666666666324348e-01};
    static constexpr double cosine[] = {-1.13596475577881948265e-11, 2.08757232129817482790e-09,
                                        -2.75573143513906633035e-07, 2.48015872894767294178e-05,
                                        -1.38888888888741095749e-03, 4.16666666666666019037e-02};
};

// sin and cos of x - n pi/2, and n, for |x| below the limit.
template <class T>
struct Quadrant {
    Vec<T> sine, cosine;
    Mask<T> n;
};
template <class T>
FASTODE_INLINE Quadrant<T> quadrant(Vec<T> x) {
    using C = TrigConstants<T>;
    const Vec<T> shifter = splat<T>(Simd<T>::shifter);
    const Vec<T> shifted = fma(x, splat<T>(T(0.63661977236758134308)), shifter);
    const Vec<T> n = shifted - shifter;
    Vec<T> r = x;
    for (int i = 0; i < (sizeof(T) == 4 ? 4 : 3); ++i) r = fma(n, splat<T>(-C::parts[i]), r);
    const Vec<T> z = r * r;
    const Vec<T> sine = fma(z * r, polynomial<T>(z, C::sine), r);
    const Vec<T> cosine = fma(z * z, polynomial<T>(z, C::cosine), fma(z, splat<T>(T(-0.5)), splat<T>(T(1))));
    return {sine, cosine, (Mask<T>)shifted};
}

template <class T>
FASTODE_INLINE Mask<T> too_large(Vec<T> x) {
    return ~(absolute<T>(x) < TrigConstants<T>::limit);
}

template <class T>
FASTODE_INLINE Vec<T> sin_v(Vec<T> x) {
    const Mask<T> large = too_large<T>(x);
    const Quadrant<T> q = quadrant<T>(x);
    Vec<T> result = select<T>((q.n & splat_int<T>(1)) != 0, q.cosine, q.sine);
    result = select<T>((q.n & splat_int<T>(2)) != 0, -result, result);
    result = select<T>(x == T(0), x, result);
    if (any<T>(large)) {
        result = select<T>(large, each<T>(x, [](T v, int) { return libm_sin(v); }), result);
    }
    return result;
}

template <class T>
FASTODE_INLINE Vec<T> cos_v(Vec<T> x) {
    const Mask<T> large = too_large<T>(x);
    const Quadrant<T> q = quadrant<T>(x);
    Vec<T> result = select<T>((q.n & splat_int<T>(1)) != 0, q.sine, q.cosine);
    result = select<T>(((q.n + splat_int<T>(1)) & splat_int<T>(2)) != 0, -result, result);
    if (any<T>(large)) {
        result = select<T>(large, each<T>(x, [](T v, int) { return libm_cos(v); }), result);
    }
    return result;
}

template <class T>
FASTODE_INLINE Vec<T> tan_v(Vec<T> x) {
    const Mask<T> large = too_large<T>(x);
    const Quadrant<T> q = quadrant<T>(x);
    const Mask<T> odd = (q.n & splat_int<T>(1)) != 0;
    Vec<T> result = select<T>(odd, -q.cosine, q.sine) / select<T>(odd, q.sine, q.cosine);
    result = select<T>(x == T(0), x, result);
    if (any<T>(large)) {
        result = select<T>(large, each<T>(x, [](T v, int) { return libm_tan(v); }), result);
    }
    return result;
}

// erf x = x P(x^2) below 1, 1 - exp(-x^2) Q((x - c) / (x + c)) above.
template <class T>
struct ErfConstants;
template <>
struct ErfConstants<float> {
    static constexpr float centre = 2.0F, end = 4.1F;
    static constexpr float small[] = {7.875875062685488341e-5F,  -8.016864287165869529e-4F, 5.189087423433973986e-3F,
                                      -2.685421201062641244e-2F, 0.1128359471516021773F,    -0.3761262666672033102F,
                                      1.128379165848350946F};
    static constexpr float large[] = {-9.405468631950548488e-4F, -8.358428865430571443e-4F, 6.99426608347193412e-3F,
                                      3.732034174826807388e-3F,  -7.897849727654680016e-2F, 0.2416582147809254312F,
                                      -0.427185847875010772F,    0.255395676234262219F};
};
template <>
struct ErfConstants<double> {
    static constexpr double centre = 3.0, end = 6.1;
    static constexpr double small[] = {5.957176147748911404e-11, -1.137284885679167367e-9, 1.465977527404743581e-8,
                                       -1.635031270105469501e-7, 1.646100048412136803e-6,  -1.492559526683118157e-5,
                                       1.205533111164271092e-4,  -8.548326980833789905e-4, 5.223977624818014467e-3,
                                       -2.686617064507679325e-2, 0.1128379167095487867,    -0.3761263890318374806,
                                       1.128379167095512574};
    static constexpr double large[] = {1.277651458742239178e-6,  2.019678121594711098e-6, -8.009306036540131125e-6,
                                       -1.284807743551777956e-5, 6.406235052301588193e-5, 4.525470379651225897e-5,
                                       -5.9706241545634734e-4,   7.077464391978641252e-4, 4.269136350813329392e-3,
                                       -2.439249931786136456e-2, 7.166583719767442143e-2, -0.1501159365007970255,
                                       0.2456038017123325361,    -0.3262335600430371189,  0.1790011511813899495};
};

template <class T>
FASTODE_INLINE Vec<T> erf_v(Vec<T> x) {
    using C = ErfConstants<T>;
    const Vec<T> size = lesser<T>(splat<T>(C::end), absolute<T>(x));  // a NaN stays
    const Vec<T> z = size * size;
    const Vec<T> small = x * polynomial<T>(z, C::small);
    const Vec<T> u = (size - C::centre) / (size + C::centre);
    const Vec<T> large = T(1) - exp_v<T>(-z) * polynomial<T>(u, C::large);
    return select<T>(size < T(1), small, with_sign<T>(large, x));
}

// 1 - erf x, which loses all digits where erf x comes close to 1.
template <class T>
FASTODE_INLINE Vec<T> erfc_v(Vec<T> x) {
    const Mask<T> tail = x > T(0.5);
    Vec<T> result = T(1) - erf_v<T>(x);
    if (any<T>(tail)) {
        result = select<T>(tail, each<T>(x, [](T v, int) { return libm_erfc(v); }), result);
    }
    return result;
}

// sqrt(a^2 + b^2) of numbers that are first scaled to where their squares neither overflow nor vanish.
template <class T>
FASTODE_INLINE Vec<T> hypot_v(Vec<T> a, Vec<T> b) {
    constexpr bool single = sizeof(T) == 4;
    const T infinity = static_cast<T>(__builtin_inf());
    const Vec<T> x = absolute<T>(a), y = absolute<T>(b), most = greater<T>(x, y), least = lesser<T>(x, y);
    const Mask<T> large = most > (single ? T(1e18) : T(1e150)), small = most < (single ? T(1e-18) : T(1e-140));
    const Vec<T> one = splat<T>(T(1));
    const T down = single ? T(0x1p-70) : T(0x1p-540), up = single ? T(0x1p100) : T(0x1p600);
    const Vec<T> scale = select<T>(large, splat<T>(down), select<T>(small, splat<T>(up), one));
    const Vec<T> back = select<T>(large, splat<T>(1 / down), select<T>(small, splat<T>(1 / up), one));
    const Vec<T> u = most * scale, v = least * scale;
    const Vec<T> root = square_root(fma(u, u, v * v)) * back;
    const Vec<T> known = select<T>((x != x) | (y != y), x + y, root);
    return select<T>((x == infinity) | (y == infinity), splat<T>(infinity), known);
}

FASTODE_INLINE F32 floor_v(F32 x) {
#if defined(__AVX512F__)
    return _mm512_maskz_roundscale_ps(0xffff, x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return _mm256_floor_ps(x);
#else
    return each<float>(x, [](float v, int) { return libm_floor(v); });
#endif
}
FASTODE_INLINE F64 floor_v(F64 x) {
#if defined(__AVX512F__)
    return _mm512_maskz_roundscale_pd(0xff, x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return _mm256_floor_pd(x);
#else
    return each<double>(x, [](double v, int) { return libm_floor(v); });
#endif
}
template <class T>
FASTODE_INLINE Vec<T> trunc_v(Vec<T> x) {
    return with_sign<T>(floor_v(absolute<T>(x)), x);
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
