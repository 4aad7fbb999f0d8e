#include "cpu/isa/tile_loop.h"
#include "cpu/isa/vec_special.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

#define FASTODE_UNARY_OP(name, expression)                     \
    template <class T>                                         \
    struct Op_##name {                                         \
        [[gnu::always_inline]] static Vec<T> apply(Vec<T> x) { \
            const Vec<T> one = splat<T>(T(1));                 \
            (void)one;                                         \
            return expression;                                 \
        }                                                      \
    };
FASTODE_UNARY_OP(copy, x)
FASTODE_UNARY_OP(neg, -x)
FASTODE_UNARY_OP(abs, absolute<T>(x))
FASTODE_UNARY_OP(sign, keep_if<T>(x > T(0), one) - keep_if<T>(x < T(0), one))
FASTODE_UNARY_OP(sqrt, square_root(x))
FASTODE_UNARY_OP(rsqrt, T(1) / square_root(x))
FASTODE_UNARY_OP(reciprocal, T(1) / x)
FASTODE_UNARY_OP(square, x* x)
FASTODE_UNARY_OP(exp, exp_v<T>(x))
FASTODE_UNARY_OP(exp2, exp2_v<T>(x))
FASTODE_UNARY_OP(expm1, expm1_v<T>(x))
FASTODE_UNARY_OP(log, log_v<T>(x))
FASTODE_UNARY_OP(log1p, log1p_v<T>(x))
FASTODE_UNARY_OP(sin, sin_v<T>(x))
FASTODE_UNARY_OP(cos, cos_v<T>(x))
FASTODE_UNARY_OP(tan, tan_v<T>(x))
FASTODE_UNARY_OP(sinh, sinh_v<T>(x))
FASTODE_UNARY_OP(cosh, cosh_v<T>(x))
FASTODE_UNARY_OP(tanh, tanh_v<T>(x))
FASTODE_UNARY_OP(asin, (each<T>(x, [](T v, int) { return libm_asin(v); })))
FASTODE_UNARY_OP(acos, (each<T>(x, [](T v, int) { return libm_acos(v); })))
FASTODE_UNARY_OP(atan, (each<T>(x, [](T v, int) { return libm_atan(v); })))
FASTODE_UNARY_OP(asinh, asinh_v<T>(x))
FASTODE_UNARY_OP(acosh, acosh_v<T>(x))
FASTODE_UNARY_OP(atanh, atanh_v<T>(x))
FASTODE_UNARY_OP(sigmoid, sigmoid_v<T>(x))
FASTODE_UNARY_OP(softplus, softplus_v<T>(x))
FASTODE_UNARY_OP(relu, select<T>(x < T(0), Vec<T>{}, x))
FASTODE_UNARY_OP(erf, erf_v<T>(x))
FASTODE_UNARY_OP(erfc, erfc_v<T>(x))
FASTODE_UNARY_OP(floor, floor_v(x))
FASTODE_UNARY_OP(ceil, -floor_v(-x))
FASTODE_UNARY_OP(round, (each<T>(x, [](T v, int) { return libm_rint(v); })))
FASTODE_UNARY_OP(trunc, trunc_v<T>(x))
FASTODE_UNARY_OP(logical_not, keep_if<T>(x == T(0), one))
#undef FASTODE_UNARY_OP

template <class T, class Op>
FASTODE_INLINE void unary(const TileInstruction& in, const TileFrame<T>& f) {
    const T imm = static_cast<T>(in.imm0);
    const TileLoop<T> loop = whole_loop(f, in.n0, lies_flat(f, in.a));
    const TileSource<T> a = source(f, in.a, &imm);
    T* out = f.at(in.out);
    if (a.scalar) {
        over_tile<T>(out, loop, [&](int64_t r, int64_t c) { return Op::apply(a.template get<true>(r, c)); });
    } else {
        over_tile<T>(out, loop, [&](int64_t r, int64_t c) { return Op::apply(a.template get<false>(r, c)); });
    }
}

template <class T, class Op>
void unary_of_all(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    for (int64_t k = 0; k < n_frames; ++k) unary<T, Op>(in, *frames[k]);
}

template <class T>
void run(const TileInstruction* code, int64_t n, const TileFrame<T>* const* frames, int64_t n_frames) {
    for (int64_t i = 0; i < n; ++i) {
        switch (code[i].op) {
#define FASTODE_CASE(name) \
    case op_##name: unary_of_all<T, Op_##name<T>>(code[i], frames, n_frames); break;
            FASTODE_TILE_UNARY(FASTODE_CASE)
#undef FASTODE_CASE
            default: break;
        }
    }
}

}  // namespace

const TileRunKernels tile_unary_kernels = {run<float>, run<double>};

}  // namespace fastode::FASTODE_ISA
