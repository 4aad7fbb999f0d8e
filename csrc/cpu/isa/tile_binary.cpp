#include "cpu/isa/tile_loop.h"
#include "cpu/isa/vec_pow.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

template <class T>
FASTODE_INLINE Vec<T> truth(Mask<T> mask) {
    return keep_if<T>(mask, splat<T>(T(1)));
}

template <class T>
FASTODE_INLINE Vec<T> library(Vec<T> a, Vec<T> b, T (*f)(T, T)) {
    return each<T>(a, [&](T v, int i) { return f(v, b[i]); });
}
template <class T>
T fmod_of(T a, T b) {
    return libm_fmod(a, b);
}
template <class T>
T atan2_of(T a, T b) {
    return libm_atan2(a, b);
}
// The remainder with the sign of the divisor.
template <class T>
T remainder_of(T a, T b) {
    const T rest = libm_fmod(a, b);
    return rest != 0 && ((rest < 0) != (b < 0)) ? rest + b : rest;
}

#define FASTODE_BINARY_OP(name, expression)                                                   \
    template <class T>                                                                        \
    struct Op_##name {                                                                        \
        [[gnu::always_inline]] static Vec<T> apply(Vec<T> a, Vec<T> b) { return expression; } \
    };
FASTODE_BINARY_OP(add, a + b)
FASTODE_BINARY_OP(sub, a - b)
FASTODE_BINARY_OP(mul, a* b)
FASTODE_BINARY_OP(div, a / b)
FASTODE_BINARY_OP(pow, pow_v(a, b))
FASTODE_BINARY_OP(minimum, select<T>(a != a, a, lesser<T>(a, b)))
FASTODE_BINARY_OP(maximum, select<T>(a != a, a, greater<T>(a, b)))
FASTODE_BINARY_OP(atan2, library<T>(a, b, atan2_of<T>))
FASTODE_BINARY_OP(hypot, hypot_v<T>(a, b))
FASTODE_BINARY_OP(fmod, library<T>(a, b, fmod_of<T>))
FASTODE_BINARY_OP(remainder, library<T>(a, b, remainder_of<T>))
FASTODE_BINARY_OP(eq, truth<T>(a == b))
FASTODE_BINARY_OP(ne, truth<T>(a != b))
FASTODE_BINARY_OP(lt, truth<T>(a < b))
FASTODE_BINARY_OP(le, truth<T>(a <= b))
FASTODE_BINARY_OP(gt, truth<T>(a > b))
FASTODE_BINARY_OP(ge, truth<T>(a >= b))
FASTODE_BINARY_OP(logical_and, truth<T>((a != T(0)) & (b != T(0))))
FASTODE_BINARY_OP(logical_or, truth<T>((a != T(0)) | (b != T(0))))
FASTODE_BINARY_OP(tanh_back, a* fma(-b, b, splat<T>(T(1))))
FASTODE_BINARY_OP(sigmoid_back, (a * b) * (T(1) - b))
FASTODE_BINARY_OP(softplus_back, (select<T>(b > T(20), a, a / (exp_v<T>(-b) + T(1)))))
#undef FASTODE_BINARY_OP

template <class T, class Op, bool kA, bool kB>
FASTODE_INLINE void loop_binary(T* out, const TileLoop<T>& loop, const TileSource<T>& a, const TileSource<T>& b) {
    over_tile<T>(out, loop,
                 [&](int64_t r, int64_t c) { return Op::apply(a.template get<kA>(r, c), b.template get<kB>(r, c)); });
}

template <class T, class Op>
void binary(const TileInstruction& in, const TileFrame<T>& f) {
    const T imm[2] = {static_cast<T>(in.imm0), static_cast<T>(in.imm1)};
    const TileLoop<T> loop = whole_loop(f, in.n0, lies_flat(f, in.a) && lies_flat(f, in.b));
    const TileSource<T> a = source(f, in.a, imm), b = source(f, in.b, imm + 1);
    T* out = f.at(in.out);
    if (a.scalar)
        return b.scalar ? loop_binary<T, Op, true, true>(out, loop, a, b)
                        : loop_binary<T, Op, true, false>(out, loop, a, b);
    return b.scalar ? loop_binary<T, Op, false, true>(out, loop, a, b)
                    : loop_binary<T, Op, false, false>(out, loop, a, b);
}

template <class T>
struct Op_where {
    [[gnu::always_inline]] static Vec<T> apply(Vec<T> a, Vec<T> b, Vec<T> c) { return select<T>(a != T(0), b, c); }
};
template <class T>
struct Op_fma {
    [[gnu::always_inline]] static Vec<T> apply(Vec<T> a, Vec<T> b, Vec<T> c) {
        return fastode::FASTODE_ISA::fma(a, b, c);
    }
};

template <class T, class Op, bool kA, bool kB>
FASTODE_INLINE void loop_ternary(T* out, const TileLoop<T>& loop, const TileSource<T>& a, const TileSource<T>& b,
                                 const TileSource<T>& c) {
    if (c.scalar) {
        over_tile<T>(out, loop, [&](int64_t r, int64_t k) {
            return Op::apply(a.template get<kA>(r, k), b.template get<kB>(r, k), c.template get<true>(r, k));
        });
    } else {
        over_tile<T>(out, loop, [&](int64_t r, int64_t k) {
            return Op::apply(a.template get<kA>(r, k), b.template get<kB>(r, k), c.template get<false>(r, k));
        });
    }
}

template <class T, class Op>
void ternary(const TileInstruction& in, const TileFrame<T>& f) {
    const T imm[2] = {static_cast<T>(in.imm0), static_cast<T>(in.imm1)};
    const bool flat = lies_flat(f, in.a) && lies_flat(f, in.b) && lies_flat(f, in.c);
    const TileLoop<T> loop = whole_loop(f, in.n0, flat);
    const TileSource<T> a = source(f, in.a, imm), b = source(f, in.b, imm + 1), c = source(f, in.c, imm + 1);
    T* out = f.at(in.out);
    if (a.scalar)
        return b.scalar ? loop_ternary<T, Op, true, true>(out, loop, a, b, c)
                        : loop_ternary<T, Op, true, false>(out, loop, a, b, c);
    return b.scalar ? loop_ternary<T, Op, false, true>(out, loop, a, b, c)
                    : loop_ternary<T, Op, false, false>(out, loop, a, b, c);
}

template <class T, class Op>
void binary_of_all(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    for (int64_t k = 0; k < n_frames; ++k) binary<T, Op>(in, *frames[k]);
}
template <class T, class Op>
void ternary_of_all(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    for (int64_t k = 0; k < n_frames; ++k) ternary<T, Op>(in, *frames[k]);
}

template <class T>
void run(const TileInstruction* code, int64_t n, const TileFrame<T>* const* frames, int64_t n_frames) {
    for (int64_t i = 0; i < n; ++i) {
        switch (code[i].op) {
#define FASTODE_CASE(name) \
    case op_##name: binary_of_all<T, Op_##name<T>>(code[i], frames, n_frames); break;
            FASTODE_TILE_BINARY(FASTODE_CASE)
#undef FASTODE_CASE
#define FASTODE_CASE(name) \
    case op_##name: ternary_of_all<T, Op_##name<T>>(code[i], frames, n_frames); break;
            FASTODE_TILE_TERNARY(FASTODE_CASE)
#undef FASTODE_CASE
            default: break;
        }
    }
}

}  // namespace

const TileRunKernels tile_binary_kernels = {run<float>, run<double>};

}  // namespace fastode::FASTODE_ISA
