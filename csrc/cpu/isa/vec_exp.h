// exp, expm1, log, log1p, tanh, sigmoid, sinh and cosh of vectors, within a few units of rounding, with the limits
// of IEEE functions. Polynomials are Chebyshev interpolants computed with 60 digits.
#pragma once

#include "cpu/isa/vec.h"

namespace fastode::FASTODE_ISA {
namespace {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
    static constexpr float ln2_high = 0x1.62e4p-1F, ln2_low = 0x1.7f7d1cp-20F;
    static constexpr float lowest = -104.0F, highest = 89.0F, minus_one = -30.0F;
    static constexpr float q[] = {1.9891017e-4F,   1.39336737e-3F, 8.33331090e-3F,
                                  4.166646471e-2F, 0.1666666668F,  0.500000001F};
};
template <>
struct ExpConstants<double> {
    static constexpr double ln2_high = 0x1.62e42fefp-1, ln2_low = 0x1.473de6af278edp-34;
    static constexpr double lowest = -746.0, highest = 710.0, minus_one = -50.0;
    static constexpr double q[] = {2.510041108201490107e-8, 2.762012171738193519e-7, 2.755726840619079503e-6,
                                   2.480152122598643248e-5, 1.984126986308825442e-4, 1.388888891725875826e-3,
                                   8.333333333330054896e-3, 4.166666666662403767e-2, 0.1666666666666666745,
                                   0.5000000000000001025};
};

// x = n ln2 + r with |r| <= ln2 / 2; n comes as the integer in the low bits of x / ln2 + shifter.
template <class T>
struct Reduced {
    Mask<T> n;
    Vec<T> r;
};
template <class T>
FASTODE_INLINE Reduced<T> reduce_exp(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> shifter = splat<T>(Simd<T>::shifter);
    const Vec<T> shifted = fma(x, splat<T>(T(1.442695040888963407)), shifter);
    const Vec<T> n = shifted - shifter;
    const Vec<T> r = fma(n, splat<T>(-C::ln2_low), fma(n, splat<T>(-C::ln2_high), x));
    return {(Mask<T>)shifted - (Mask<T>)shifter, r};
}
// e^r - 1
template <class T>
FASTODE_INLINE Vec<T> reduced_expm1(Vec<T> r) {
    return fma(r * r, polynomial<T>(r, ExpConstants<T>::q), r);
}

template <class T>
FASTODE_INLINE Vec<T> exp_v(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> clamped = greater<T>(splat<T>(C::lowest), lesser<T>(splat<T>(C::highest), x));  // a NaN stays
    const Reduced<T> at = reduce_exp<T>(clamped);
    const Mask<T> half = at.n >> 1;  // two factors: results may be subnormal, or the first number too large
    return (reduced_expm1<T>(at.r) + T(1)) * power_of_two<T>(half) * power_of_two<T>(at.n - half);
}

// 2^x
template <class T>
FASTODE_INLINE Vec<T> exp2_v(Vec<T> x) {
    const T lowest = sizeof(T) == 4 ? T(-152) : T(-1078), highest = sizeof(T) == 4 ? T(129) : T(1025);
    const Vec<T> clamped = greater<T>(splat<T>(lowest), lesser<T>(splat<T>(highest), x));  // a NaN stays
    const Vec<T> shifter = splat<T>(Simd<T>::shifter);
    const Vec<T> shifted = clamped + shifter;
    const Vec<T> r = (clamped - (shifted - shifter)) * T(0.69314718055994530942);
    const Mask<T> n = (Mask<T>)shifted - (Mask<T>)shifter, half = n >> 1;
    return (reduced_expm1<T>(r) + T(1)) * power_of_two<T>(half) * power_of_two<T>(n - half);
}

template <class T>
FASTODE_INLINE Vec<T> expm1_v(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> clamped = greater<T>(splat<T>(C::minus_one), lesser<T>(splat<T>(C::highest), x));
    const Reduced<T> at = reduce_exp<T>(clamped);
    const Vec<T> half = power_of_two<T>(at.n - 1);  // 2^n itself may be too large
    const Vec<T> result = fma(half, reduced_expm1<T>(at.r), half - T(0.5)) * T(2);
    return select<T>(x == T(0), x, result);
}

// In float a quotient of polynomials, fitted to a relative error of 2.1e-8 up to where the result rounds to 1: half the
// work of the exponential, and tanh is what neural fields spend their time on.
FASTODE_INLINE F32 tanh_of(F32 x) {
    static constexpr float p[] = {1.33356405561e-8F, 2.05954065115e-5F, 3.49475932011e-3F, 0.133803286832F,
                                  0.999999979412F};
    static constexpr float q[] = {7.76878877086e-7F, 3.28427775494e-4F, 2.58738317452e-2F, 0.46713644167F, 1.0F};
    // From here on, and not before, the result rounds to 1; the quotient only comes close.
    const Mask<float> far = absolute<float>(x) >= 9.01084F;
    const F32 one = splat<float>(1.0F), most = splat<float>(0.99999994F), z = x * x;
    const F32 ratio = x * polynomial<float>(z, p) / polynomial<float>(z, q);
    return select<float>(far, with_sign<float>(one, x), greater<float>(-most, lesser<float>(most, ratio)));
}
FASTODE_INLINE F64 tanh_of(F64 x) {
    const F64 e = expm1_v<double>(lesser<double>(splat<double>(20.0), absolute<double>(x)) * 2.0);
    return with_sign<double>(e / (e + 2.0), x);
}
template <class T>
FASTODE_INLINE Vec<T> tanh_v(Vec<T> x) {
    return tanh_of(x);
}

template <class T>
FASTODE_INLINE Vec<T> sigmoid_v(Vec<T> x) {
    return T(1) / (exp_v<T>(-x) + T(1));
}

template <class T>
FASTODE_INLINE Vec<T> sinh_v(Vec<T> x) {
    const Vec<T> size = absolute<T>(x);
    const Vec<T> e = expm1_v<T>(size);
    const Vec<T> root = exp_v<T>(size * T(0.5));
    const Vec<T> small = (e + e / (e + T(1))) * T(0.5);
    return with_sign<T>(select<T>(size > T(20), root * T(0.5) * root, small), x);
}

template <class T>
FASTODE_INLINE Vec<T> cosh_v(Vec<T> x) {
    const Vec<T> size = absolute<T>(x);
    const Vec<T> e = exp_v<T>(size);
    const Vec<T> root = exp_v<T>(size * T(0.5));
    return select<T>(size > T(20), root * T(0.5) * root, (e + T(1) / e) * T(0.5));
}

template <class T>
struct LogConstants;
template <>
struct LogConstants<float> {
    static constexpr float p[] = {0.2958039828151949196F, 0.3998877067350959746F, 0.6666668506375033641F};
    static constexpr float tiny = 1.17549435e-38F, scale = 16777216.0F;
    static constexpr int scale_bits = 24;
};
template <>
struct LogConstants<double> {
    static constexpr double p[] = {0.1308723619670683371, 0.1326871479234288511, 0.1538624188193882561,
                                   0.1818179560006078727, 0.22222222392089008,   0.2857142857080195694,
                                   0.4000000000000087969, 0.6666666666666666646};
    static constexpr double tiny = 2.2250738585072014e-308, scale = 18014398509481984.0;
    static constexpr int scale_bits = 54;
};

// x = 2^k m with m in [sqrt(1/2), sqrt(2)), for positive finite x; the sign does not count, so that no integer
// overflows.
template <class T>
struct Split {
    Vec<T> k, m;
};
template <class T>
FASTODE_INLINE Split<T> split_exponent(Vec<T> x) {
    using C = LogConstants<T>;
    using S = Simd<T>;
    const Mask<T> subnormal = x < C::tiny;
    const Vec<T> normal = select<T>(subnormal, x * C::scale, x);
    const Mask<T> bits = (Mask<T>)absolute<T>(normal);
    // Adding the distance from sqrt(1/2) to 1 makes the exponent change where m does.
    const Mask<T> root = (Mask<T>)splat<T>(T(0.70710678118654752440));
    const Mask<T> k = ((bits - root) >> S::mantissa);
    const Vec<T> m = (Vec<T>)(bits - (k << S::mantissa));
    const Mask<T> number = k - (subnormal & splat_int<T>(C::scale_bits));
    // Integer to floating point by the shifter: |number| is far below 2^22.
    const Vec<T> shifter = splat<T>(S::shifter);
    return {(Vec<T>)((Mask<T>)shifter + number) - shifter, m};
}

// The value of log at 0, infinity, NaN and negative numbers.
template <class T>
FASTODE_INLINE Vec<T> log_limits(Vec<T> x, Vec<T> inside) {
    const T infinity = static_cast<T>(__builtin_inf());
    Vec<T> result = select<T>(x < infinity, inside, x);  // infinity and NaN
    result = select<T>(x == T(0), splat<T>(-infinity), result);
    return select<T>(x < T(0), splat<T>(static_cast<T>(__builtin_nan(""))), result);
}

// log(2^k (1 + f)) + extra
template <class T>
FASTODE_INLINE Vec<T> log_of_split(Vec<T> k, Vec<T> f, Vec<T> extra) {
    using E = ExpConstants<T>;
    const Vec<T> s = f / (f + T(2));
    const Vec<T> z = s * s;
    const Vec<T> rest = z * polynomial<T>(z, LogConstants<T>::p);
    const Vec<T> half_square = f * f * T(0.5);
    const Vec<T> low = fma(s, half_square + rest, fma(k, splat<T>(E::ln2_low), extra));
    return fma(k, splat<T>(E::ln2_high), f - (half_square - low));
}

template <class T>
FASTODE_INLINE Vec<T> log_v(Vec<T> x) {
    const Split<T> at = split_exponent<T>(x);
    return log_limits<T>(x, log_of_split<T>(at.k, at.m - T(1), Vec<T>{}));
}

template <class T>
FASTODE_INLINE Vec<T> log1p_v(Vec<T> x) {
    const Vec<T> u = x + T(1);
    // What rounding took from 1 + x, whichever is larger.
    const Vec<T> lost = select<T>(x > T(1), T(1) - (u - x), x - (u - T(1)));
    const Split<T> at = split_exponent<T>(u);
    const Vec<T> result = log_limits<T>(u, log_of_split<T>(at.k, at.m - T(1), select<T>(u > T(0), lost / u, Vec<T>{})));
    return select<T>(x == T(0), x, result);
}

// Beyond this 1 + x^2 is x^2, and asinh and acosh are log(2 x).
template <class T>
constexpr T kLargeHyperbolic = sizeof(T) == 4 ? T(4096) : T(268435456);

template <class T>
FASTODE_INLINE Vec<T> asinh_v(Vec<T> x) {
    const Vec<T> size = absolute<T>(x), z = size * size;
    const Mask<T> large = size > kLargeHyperbolic<T>;
    const Vec<T> small = size + z / (square_root(z + T(1)) + T(1));
    const Vec<T> result = log1p_v<T>(select<T>(large, size - T(1), small));
    return with_sign<T>(result + keep_if<T>(large, splat<T>(T(0.69314718055994530942))), x);
}

template <class T>
FASTODE_INLINE Vec<T> acosh_v(Vec<T> x) {
    const Vec<T> above = x - T(1);
    const Mask<T> large = x > kLargeHyperbolic<T>;
    const Vec<T> small = above + square_root(above * (x + T(1)));
    const Vec<T> result = log1p_v<T>(select<T>(large, above, small));
    const Vec<T> whole = result + keep_if<T>(large, splat<T>(T(0.69314718055994530942)));
    return select<T>(x < T(1), splat<T>(static_cast<T>(__builtin_nan(""))), whole);
}

template <class T>
FASTODE_INLINE Vec<T> atanh_v(Vec<T> x) {
    const Vec<T> size = absolute<T>(x), twice = size + size;
    const Vec<T> result = log1p_v<T>(twice + twice * size / (T(1) - size)) * T(0.5);
    return select<T>(size > T(1), splat<T>(static_cast<T>(__builtin_nan(""))), with_sign<T>(result, x));
}

// log(1 + e^x), and x itself above 20, as torch has it: max(x, 0) + log(1 + e), with e = e^-|x| at most 1.
template <class T>
FASTODE_INLINE Vec<T> softplus_v(Vec<T> x) {
    const Vec<T> e = exp_v<T>(-absolute<T>(x));
    // 1 + e = 2^k (1 + f) with f in the range of the logarithm's polynomial; e - 1 is exact where it matters.
    const Mask<T> far = e > T(0.41421356237309504880);
    const Vec<T> f = select<T>(far, (e - T(1)) * T(0.5), e);
    const Vec<T> soft = greater<T>(x, Vec<T>{}) + log_of_split<T>(keep_if<T>(far, splat<T>(T(1))), f, Vec<T>{});
    return select<T>(x > T(20), x, soft);
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
