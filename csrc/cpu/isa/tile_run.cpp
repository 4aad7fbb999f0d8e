#include "cpu/isa/vec.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

FASTODE_INLINE auto part(const TileRunKernels& kernels, const float*) { return kernels.f32; }
FASTODE_INLINE auto part(const TileRunKernels& kernels, const double*) { return kernels.f64; }

template <class T>
void fill(const TileInstruction& in, const TileFrame<T>& f) {
    T* out = f.at(in.out);
    const T value = static_cast<T>(in.imm0);
    for (int64_t i = 0; i < in.n0 * f.lanes; ++i) out[i] = value;
}

// Values of gathers and sums may be shared: then the source has one number for all lanes.
template <class T>
struct Rows {
    const T* at;
    int64_t row, lane;
    T get(int64_t i, int64_t l) const { return at[i * row + l * lane]; }
};
template <class T>
FASTODE_INLINE Rows<T> rows_of(const TileFrame<T>& f, const TileOperand& x) {
    return x.base == base_shared ? Rows<T>{f.at(x), 1, 0} : Rows<T>{f.at(x), f.lanes, 1};
}

template <class T>
void gather(const TileInstruction& in, const TileFrame<T>& f) {
    const Rows<T> a = rows_of(f, in.a);
    const int32_t* map = f.maps + in.map;
    T* out = f.at(in.out);
    for (int64_t i = 0; i < in.n0; ++i) {
        T* to = out + i * f.lanes;
        if (map[i] < 0) {
            for (int64_t l = 0; l < f.active; ++l) to[l] = T(0);
        } else {
            const T* from = a.at + map[i] * a.row;
            for (int64_t l = 0; l < f.active; ++l) to[l] = from[l * a.lane];
        }
    }
}

template <class T>
void scatter(const TileInstruction& in, const TileFrame<T>& f) {
    const Rows<T> a = rows_of(f, in.a);
    const int32_t* map = f.maps + in.map;
    T* out = f.at(in.out);
    for (int64_t i = 0; i < in.n1 * f.lanes; ++i) out[i] = T(0);
    for (int64_t i = 0; i < in.n0; ++i) {
        if (map[i] < 0) continue;
        T* to = out + map[i] * f.lanes;
        const T* from = a.at + i * a.row;
        for (int64_t l = 0; l < f.active; ++l) to[l] += from[l * a.lane];
    }
}

template <class T, bool kMax>
FASTODE_INLINE T combine(T sum, T x) {
    if (!kMax) return sum + x;
    return sum != sum ? sum : (sum > x ? sum : x);
}

template <class T, bool kMax>
void reduce(const TileInstruction& in, const TileFrame<T>& f) {
    const Rows<T> a = rows_of(f, in.a);
    T* out = f.at(in.out);
    const int64_t outer = in.n0, middle = in.n1, inner = in.n2;
    for (int64_t o = 0; o < outer; ++o) {
        for (int64_t i = 0; i < inner; ++i) {
            T* to = out + (o * inner + i) * f.lanes;
            const T* first = a.at + (o * middle * inner + i) * a.row;
            for (int64_t l = 0; l < f.active; ++l) to[l] = middle > 0 ? first[l * a.lane] : T(0);
            for (int64_t r = 1; r < middle; ++r) {
                const T* from = first + r * inner * a.row;
                for (int64_t l = 0; l < f.active; ++l) to[l] = combine<T, kMax>(to[l], from[l * a.lane]);
            }
        }
    }
}

template <class T>
void other(const TileInstruction& in, const TileFrame<T>& f) {
    switch (in.op) {
        case op_fill: return fill(in, f);
        case op_gather: return gather(in, f);
        case op_scatter: return scatter(in, f);
        case op_sum: return reduce<T, false>(in, f);
        case op_amax: return reduce<T, true>(in, f);
        default: return;
    }
}

template <class T>
void run(const TileInstruction* code, int64_t n, const TileFrame<T>* const* frames, int64_t n_frames) {
    const T* type = nullptr;
    for (int64_t i = 0; i < n; ++i) {
        const TileInstruction& in = code[i];
        if (in.op < kFirstBinary) {
            part(tile_unary_kernels, type)(&in, 1, frames, n_frames);
        } else if (in.op < kFirstOther) {
            part(tile_binary_kernels, type)(&in, 1, frames, n_frames);
        } else if (in.op == op_matmul) {
            part(tile_matmul_kernels, type)(&in, 1, frames, n_frames);
        } else {
            for (int64_t k = 0; k < n_frames; ++k) other(in, *frames[k]);
        }
    }
}

}  // namespace

const TileRunKernels tile_run_kernels = {run<float>, run<double>};

}  // namespace fastode::FASTODE_ISA
