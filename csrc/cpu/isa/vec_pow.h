// pow of vectors.
#pragma once

#include "cpu/isa/vec_special.h"

namespace fastode::FASTODE_ISA {
namespace {

// a * b as a sum of two numbers.
template <class T>
struct Sum2 {
    Vec<T> high, low;
};
FASTODE_INLINE Sum2<double> exact_product(F64 a, F64 b) {
    const F64 product = a * b;
    if constexpr (kFused) return {product, fma(a, b, -product)};
    const double factor = 134217729.0;  // 2^27 + 1: halves of 26 bits each
    const F64 ca = a * factor, cb = b * factor;
    const F64 a1 = ca - (ca - a), b1 = cb - (cb - b);
    const F64 a2 = a - a1, b2 = b - b1;
    return {product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)};
}
FASTODE_INLINE Sum2<double> exact_sum(F64 a, F64 b) {  // |a| >= |b| or a = 0
    const F64 sum = a + b;
    return {sum, b - (sum - a)};
}

// |a|^b in double for finite positive |a|, with the logarithm in twice the precision.
FASTODE_INLINE F64 power_of_positive(F64 a, F64 b) {
    const Split<double> at = split_exponent<double>(a);
    const F64 f = at.m - 1.0, g = at.m + 1.0;
    // s = f / g, its error from g - (m + 1) and from the division
    const F64 s = f / g;
    const F64 g_low = (at.m - (g - 1.0));
    const Sum2<double> back = exact_product(s, g);
    const F64 s_low = (((f - back.high) - back.low) - s * g_low) / g;
    // log m = 2 s + s z (2/3 + z P2(z)), z = s^2; the first two terms in twice the precision
    const Sum2<double> z = exact_product(s, s);
    const F64 z_low = fma(s + s, s_low, z.low);
    static constexpr double p2[] = {0.1291402271698911639, 0.1328592465723829908, 0.1538557578282018592,
                                    0.1818180823400314187, 0.2222222227118531405, 0.2857142857133832288,
                                    0.4000000000000002713};
    const double third = 2.0 / 3.0, third_low = 3.7007434154171886e-17;
    const Sum2<double> two = exact_product(z.high, splat<double>(third));
    const F64 tail = fma(z.high * z.high, polynomial<double>(z.high, p2),
                         fma(z.high, splat<double>(third_low), fma(z_low, splat<double>(third), two.low)));
    const Sum2<double> bracket = exact_sum(two.high, tail);
    const Sum2<double> cubic = exact_product(s, bracket.high);
    const F64 cubic_low = fma(s, bracket.low, fma(s_low, bracket.high, cubic.low));
    const Sum2<double> first = exact_sum(s + s, cubic.high);
    const F64 first_low = first.low + (s_low + s_low) + cubic_low;
    const Sum2<double> whole = exact_sum(at.k * ExpConstants<double>::ln2_high, first.high);
    const F64 whole_low = fma(at.k, splat<double>(ExpConstants<double>::ln2_low), whole.low + first_low);
    const Sum2<double> log = exact_sum(whole.high, whole_low);
    // exp of b log a; beyond these bounds the result is 0 or infinite anyway
    const F64 bound = splat<double>(1e18);
    const F64 exponent = greater<double>(-bound, lesser<double>(bound, b));
    const Sum2<double> power = exact_product(exponent, log.high);
    const F64 power_low = fma(exponent, log.low, power.low);
    const F64 clamped = greater<double>(splat<double>(-746.0), lesser<double>(splat<double>(710.0), power.high));
    const Reduced<double> reduced = reduce_exp<double>(clamped);
    const F64 r = reduced.r + select<double>(clamped == power.high, power_low, F64{});
    const I64 half = reduced.n >> 1;
    return (reduced_expm1<double>(r) + 1.0) * power_of_two<double>(half) * power_of_two<double>(reduced.n - half);
}

// a^b with the limits of the C library's pow.
FASTODE_INLINE F64 pow_v(F64 a, F64 b) {
    const double infinity = __builtin_inf();
    const F64 size = absolute<double>(a), width = absolute<double>(b);
    const F64 half = width * 0.5;
    const I64 whole = (floor_v(width) == width) & (width < infinity);  // no fraction; above 2^53 all are even
    const I64 odd = whole & (floor_v(half) != half);
    F64 result = power_of_positive(size, b);
    const I64 up = (size > 1.0) == (b > 0.0);  // whether the limit is infinity or 0
    const I64 extreme = (size == 0.0) | (size == infinity) | (width == infinity);
    result = select<double>(extreme, select<double>(up, splat<double>(infinity), F64{}), result);
    result = select<double>(((I64)sign_bit<double>(a) != 0) & odd, -result, result);
    const I64 undefined = (a < 0.0) & ~whole & (size < infinity) & (width < infinity);
    result = select<double>(undefined, splat<double>(__builtin_nan("")), result);
    result = select<double>((size == 1.0) & (width == infinity), splat<double>(1.0), result);
    result = select<double>((a != a) | (b != b), a + b, result);
    return select<double>((b == 0.0) | (a == 1.0), splat<double>(1.0), result);
}

FASTODE_INLINE F32 pow_v(F32 a, F32 b) {
    const Pair64 x = widen(a), y = widen(b);
    return narrow({pow_v(x.low, y.low), pow_v(x.high, y.high)});
}

}  // namespace
}  // namespace fastode::FASTODE_ISA
