#include "cpu/isa/matmul_lanes.h"
#include "cpu/isa/matmul_rows.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

// Any bases and strides, one vector of lanes (or one sample) at a time.
template <class T>
void plain_product(const TileInstruction& in, const TileFrame<T>& f) {
    const bool has_c = in.c.base != base_none;
    // Elements of shared bases are the same for all lanes.
    const auto scale = [&f](const TileOperand& x) { return x.base == base_shared ? 1 : f.lanes; };
    const int64_t sa = scale(in.a), sb = scale(in.b), sc = has_c ? scale(in.c) : 0;
    const T *a = f.at(in.a), *b = f.at(in.b), *c = has_c ? f.at(in.c) : nullptr;
    T* out = f.at(in.out);
    for (int64_t i = 0; i < in.n0; ++i) {
        for (int64_t k = 0; k < in.n2; ++k) {
            T* to = out + (i * in.out.s0 + k * in.out.s1) * f.lanes;
            const T* start = has_c ? c + (i * in.c.s0 + k * in.c.s1) * sc : nullptr;
            for (int64_t lane = 0; lane < f.active; ++lane) {
                T sum = has_c ? start[in.c.base == base_shared ? 0 : lane] : T(0);
                for (int64_t j = 0; j < in.n1; ++j) {
                    const T x = a[(i * in.a.s0 + j * in.a.s1) * sa + (in.a.base == base_shared ? 0 : lane)];
                    const T y = b[(j * in.b.s0 + k * in.b.s1) * sb + (in.b.base == base_shared ? 0 : lane)];
                    sum = multiply_add(x, y, sum);
                }
                to[lane] = sum;
            }
        }
    }
}

// The same product with the operands exchanged and everything transposed.
FASTODE_INLINE TileInstruction transposed(const TileInstruction& in) {
    const auto turned = [](const TileOperand& x) { return TileOperand{x.base, x.offset, x.s1, x.s0}; };
    TileInstruction result = in;
    result.n0 = in.n2;
    result.n2 = in.n0;
    result.out = turned(in.out);
    result.a = turned(in.b);
    result.b = turned(in.a);
    result.c = turned(in.c);
    return result;
}

template <class T>
void lanes_matmul(const TileInstruction& in, const TileFrame<T>& f) {
    if (in.b.base == base_shared) {
        if (in.a.base == base_shared) return plain_product(in, f);
        return lanes_matmul(transposed(in), f);
    }
    const bool has_c = in.c.base != base_none, c_number = in.c.base == base_shared;
    const bool weights = in.a.base == base_shared;
    const int64_t L = f.lanes, a_scale = weights ? 1 : L, c_scale = c_number ? 1 : L;
    LaneProduct<T> p{f.at(in.out),
                     f.at(in.a),
                     f.at(in.b),
                     has_c ? f.at(in.c) : nullptr,
                     in.out.s0 * L,
                     in.a.s0 * a_scale,
                     in.a.s1 * a_scale,
                     in.b.s0 * L,
                     in.c.s0 * c_scale,
                     c_number,
                     in.n0,
                     in.n1,
                     f.active};
    const bool c_joins = !has_c || in.n2 == 1 || in.c.s1 == (c_number ? 0 : 1);
    const bool joined = weights && f.active == L && in.b.s1 == 1 && in.out.s1 == 1 && c_joins;
    if (joined) p.columns = in.n2 * L;
    for (int64_t k = 0; k < (joined ? 1 : in.n2); ++k) {
        if (weights) {
            lane_product<T, true>(p);
        } else {
            lane_product<T, false>(p);
        }
        p.out += in.out.s1 * L;
        p.b += in.b.s1 * L;
        if (has_c) p.c += in.c.s1 * c_scale;
    }
}

template <class T>
void row_matmul(const TileInstruction& in, const TileFrame<T>& f) {
    const bool has_c = in.c.base != base_none;
    const bool columns = in.out.s0 == 1 && in.a.s0 == 1 && (!has_c || in.c.s0 == 1);
    const bool dots = in.a.s1 == 1 && in.b.s0 == 1;
    if (!columns && !dots) return plain_product(in, f);
    T* out = f.at(in.out);
    const T *a = f.at(in.a), *b = f.at(in.b), *c = has_c ? f.at(in.c) : nullptr;
    for (int64_t k = 0; k < in.n2; ++k) {
        if (columns) {
            column_product<T>({out, a, b, c, in.a.s1, in.b.s0, in.n0, in.n1});
        } else {
            dot_product<T>({out, a, b, c, in.out.s0, in.c.s0, in.a.s0, in.n0, in.n1});
        }
        out += in.out.s1;
        b += in.b.s1;
        if (has_c) c += in.c.s1;
    }
}

template <class T>
void run(const TileInstruction* code, int64_t n, const TileFrame<T>* const* frames, int64_t n_frames) {
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t k = 0; k < n_frames; ++k) {
            if (frames[k]->lanes == 1) {
                row_matmul(code[i], *frames[k]);
            } else {
                lanes_matmul(code[i], *frames[k]);
            }
        }
    }
}

}  // namespace

const TileRunKernels tile_matmul_kernels = {run<float>, run<double>};

}  // namespace fastode::FASTODE_ISA
