// Instructions of the tile machine: what a vector field becomes for the `cpu` backend. Plain data, for files under isa/
// too.
//
// A value of n components lives in a tile as [n][L]: component-major, L lanes contiguous, a lane being a sample. L is 1
// (rows: SIMD across components) or a multiple of 16 (lanes: SIMD across samples).
#pragma once

#include <cstdint>

namespace fastode {

// clang-format off
#define FASTODE_TILE_UNARY(X)                                                                                      \
    X(copy) X(neg) X(abs) X(sign) X(sqrt) X(rsqrt) X(reciprocal) X(square) X(exp) X(exp2) X(expm1) X(log) X(log1p) \
    X(sin) X(cos) X(tan) X(sinh) X(cosh) X(tanh) X(asin) X(acos) X(atan) X(asinh) X(acosh) X(atanh) X(sigmoid)     \
    X(softplus) X(relu) X(erf) X(erfc) X(floor) X(ceil) X(round) X(trunc) X(logical_not)
#define FASTODE_TILE_BINARY(X)                                                                                     \
    X(add) X(sub) X(mul) X(div) X(pow) X(minimum) X(maximum) X(atan2) X(hypot) X(fmod) X(remainder) X(eq) X(ne) X(lt)       \
    X(le) X(gt) X(ge) X(logical_and) X(logical_or) X(tanh_back) X(sigmoid_back) X(softplus_back)
#define FASTODE_TILE_TERNARY(X) X(where) X(fma)
#define FASTODE_TILE_OTHER(X) X(fill) X(gather) X(scatter) X(sum) X(amax) X(matmul) X(acc_outer) X(acc)
#define FASTODE_TILE_OPS(X) \
    FASTODE_TILE_UNARY(X) FASTODE_TILE_BINARY(X) FASTODE_TILE_TERNARY(X) FASTODE_TILE_OTHER(X)
// clang-format on

#define FASTODE_TILE_NAME(name) op_##name,
enum TileOp : int32_t { FASTODE_TILE_OPS(FASTODE_TILE_NAME) kTileOps };
#undef FASTODE_TILE_NAME

constexpr int32_t kFirstBinary = op_add, kFirstTernary = op_where, kFirstOther = op_fill;

enum TileBase : int32_t {
    base_none,
    base_imm,
    base_in,       // [D] state at which the field is evaluated, per stage
    base_time,     // [1] its time, per stage
    base_out,      // [D] the field there, per stage
    base_tmp,      // intermediates of the forward routine
    base_shared,   // weights common to all samples: elements, no lanes
    base_param,    // per-sample constants
    base_gout,     // [D] cotangent of out, per stage
    base_gin,      // [D] cotangent of in, per stage
    base_adj,      // intermediates of the reverse routine, per stage
    base_gshared,  // gradients of the shared leaves: elements, no lanes
    base_gparam,   // gradients of the per-sample leaves
    kTileBases
};

struct TileOperand {
    int32_t base, offset, s0, s1;  // strides in components
};

struct TileInstruction {
    int32_t op, n0, n1, n2;
    TileOperand out, a, b, c;
    int32_t map;
    double imm0, imm1;
};

// Where the bases of one stage are, in a tile of `lanes` lanes of which the first `active` are worked on.
template <class T>
struct TileFrame {
    T* base[kTileBases];
    const int32_t* maps;
    int64_t lanes, active;

    // In a member so that it is one line in every kernel; always inlined: a copy of its own could be merged between
    // instruction sets.
    [[gnu::always_inline]] T* at(const TileOperand& operand) const {
        const bool elements = operand.base == base_shared || operand.base == base_gshared;
        return base[operand.base] + operand.offset * (elements ? 1 : lanes);
    }
};

}  // namespace fastode
