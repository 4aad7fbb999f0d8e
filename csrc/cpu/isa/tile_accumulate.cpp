#include "cpu/isa/vec.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

// The products of one instruction: a and b of every frame and every k, a bounded number of them at a time.
constexpr int kMaxProducts = 32;
template <class T>
struct Products {
    const T *a[kMaxProducts], *b[kMaxProducts];
    int n = 0;
};

// f(products) for pieces of the sum over frames and k. a and b point to the first component.
template <class T, class F>
FASTODE_INLINE void over_products(const TileOperand& a, const TileOperand& b, int64_t n_k,
                                  const TileFrame<T>* const* frames, int64_t n_frames, F f) {
    const int64_t L = frames[0]->lanes;
    Products<T> products;
    for (int64_t s = 0; s < n_frames; ++s) {
        for (int64_t k = 0; k < n_k; ++k) {
            products.a[products.n] = frames[s]->at(a) + k * a.s1 * L;
            products.b[products.n++] = frames[s]->at(b) + k * b.s1 * L;
            if (products.n < kMaxProducts) continue;
            f(products);
            products.n = 0;
        }
    }
    if (products.n > 0) f(products);
}

// A block of kI by kJ elements of out += sum of a[i] b[j] with vectors along lanes (a_step, b_step between components),
// or along j (kScalarA: a is one number, and kJ vectors lie side by side).
template <class T, int kI, int kJ, bool kScalarA>
FASTODE_INLINE void add_products(const Products<T>& p, T* out, int64_t out_i, int64_t out_j, int64_t a_at,
                                 int64_t a_step, int64_t b_at, int64_t b_step, int64_t count) {
    Vec<T> sum[kI][kJ];
    for (int r = 0; r < kI; ++r) {
        for (int c = 0; c < kJ; ++c) sum[r][c] = load<T>(out + r * out_i + c * out_j);
    }
    for (int s = 0; s < p.n; ++s) {
        Vec<T> y[kJ];
        for (int c = 0; c < kJ; ++c) y[c] = load<T>(p.b[s] + b_at + c * b_step);
        for (int r = 0; r < kI; ++r) {
            const T* a = p.a[s] + a_at + r * a_step;
            const Vec<T> x = kScalarA ? splat<T>(*a) : load<T>(a);
            for (int c = 0; c < kJ; ++c) sum[r][c] = fma(x, y[c], sum[r][c]);
        }
    }
    for (int r = 0; r < kI; ++r) {
        for (int c = 0; c < kJ; ++c) {
            T* to = out + r * out_i + c * out_j;
            if (kJ > 1 || count >= Simd<T>::W) {
                store<T>(to, sum[r][c]);
            } else {
                store_part<T>(to, sum[r][c], count);
            }
        }
    }
}

// out[i, j][lane] += sum over frames and k of a[i, k][lane] b[j, k][lane]: gradients of per-sample matrices.
template <class T>
void outer_lanes(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    constexpr int W = Simd<T>::W;
    const TileFrame<T>& f = *frames[0];
    const int64_t L = f.lanes, out_i = in.out.s0 * L, out_j = in.out.s1 * L, a_i = in.a.s0 * L, b_j = in.b.s0 * L;
    T* out = f.at(in.out);
    over_products<T>(in.a, in.b, in.n2, frames, n_frames, [&](const Products<T>& p) {
        for (int64_t i = 0; i < in.n0;) {
            const int64_t rows = i + 4 <= in.n0 ? 4 : 1;
            for (int64_t j = 0; j < in.n1;) {
                const int64_t columns = j + 2 <= in.n1 ? 2 : 1;
                for (int64_t lane = 0; lane < f.active; lane += W) {
                    T* to = out + i * out_i + j * out_j + lane;
                    const int64_t a = i * a_i + lane, b = j * b_j + lane;
                    if (rows == 4 && columns == 2) {
                        add_products<T, 4, 2, false>(p, to, out_i, out_j, a, a_i, b, b_j, W);
                    } else if (rows == 4) {
                        add_products<T, 4, 1, false>(p, to, out_i, out_j, a, a_i, b, b_j, W);
                    } else {
                        for (int64_t c = 0; c < columns; ++c) {
                            add_products<T, 1, 1, false>(p, to + c * out_j, out_i, out_j, a, a_i, b + c * b_j, b_j, W);
                        }
                    }
                }
                j += columns;
            }
            i += rows;
        }
    });
}

// The same for one sample, vectors along whichever of i and j is contiguous in its operand and in out.
template <class T>
void outer_row(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    constexpr int W = Simd<T>::W;
    T* out = frames[0]->at(in.out);
    const bool along_j = in.out.s1 == 1 && in.b.s0 == 1;
    const bool along_i = !along_j && in.out.s0 == 1 && in.a.s0 == 1;
    const TileOperand &fast = along_i ? in.a : in.b, &slow = along_i ? in.b : in.a;
    const int64_t n_fast = along_i ? in.n0 : in.n1, n_slow = along_i ? in.n1 : in.n0;
    const int64_t fast_step = along_i ? in.out.s0 : in.out.s1, slow_step = along_i ? in.out.s1 : in.out.s0;
    over_products<T>(slow, fast, in.n2, frames, n_frames, [&](const Products<T>& p) {
        if (!along_i && !along_j) {
            for (int64_t i = 0; i < n_slow; ++i) {
                for (int64_t j = 0; j < n_fast; ++j) {
                    T& sum = out[i * slow_step + j * fast_step];
                    for (int s = 0; s < p.n; ++s) sum = multiply_add(p.a[s][i * slow.s0], p.b[s][j * fast.s0], sum);
                }
            }
            return;
        }
        for (int64_t i = 0; i < n_slow;) {
            const int64_t rows = i + 4 <= n_slow ? 4 : 1;
            for (int64_t j = 0; j < n_fast;) {
                T* to = out + i * slow_step + j;
                const int64_t a = i * slow.s0, left = n_fast - j;
                if (left >= 2 * W) {
                    if (rows == 4) {
                        add_products<T, 4, 2, true>(p, to, slow_step, W, a, slow.s0, j, W, left);
                    } else {
                        add_products<T, 1, 2, true>(p, to, slow_step, W, a, slow.s0, j, W, left);
                    }
                    j += 2 * W;
                } else {
                    // Rows one by one: a part of a vector that is read past the end may be the row to come.
                    for (int64_t r = 0; r < rows; ++r) {
                        add_products<T, 1, 1, true>(p, to + r * slow_step, slow_step, W, a + r * slow.s0, slow.s0, j, W,
                                                    left);
                    }
                    j += W;
                }
            }
            i += rows;
        }
    });
}

// Gradients of shared matrices: summed over lanes too. A block of kI by kJ sums stays in registers.
template <class T, int kI, int kJ>
FASTODE_INLINE void outer_shared_block(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames,
                                       int64_t i, int64_t j, T* out) {
    constexpr int W = Simd<T>::W;
    const int64_t L = frames[0]->lanes, active = frames[0]->active;
    Vec<T> sum[kI][kJ] = {};
    for (int64_t s = 0; s < n_frames; ++s) {
        for (int64_t k = 0; k < in.n2; ++k) {
            const T* a = frames[s]->at(in.a) + (i * in.a.s0 + k * in.a.s1) * L;
            const T* b = frames[s]->at(in.b) + (j * in.b.s0 + k * in.b.s1) * L;
            for (int64_t lane = 0; lane < active; lane += W) {
                Vec<T> x[kI], y[kJ];
                for (int r = 0; r < kI; ++r) x[r] = load<T>(a + r * in.a.s0 * L + lane);
                for (int c = 0; c < kJ; ++c) y[c] = load<T>(b + c * in.b.s0 * L + lane);
                for (int r = 0; r < kI; ++r) {
                    for (int c = 0; c < kJ; ++c) sum[r][c] = fma(x[r], y[c], sum[r][c]);
                }
            }
        }
    }
    for (int r = 0; r < kI; ++r) {
        for (int c = 0; c < kJ; ++c) {
            out[(i + r) * in.out.s0 + (j + c) * in.out.s1] += lane_sum<T>(sum[r][c]);
        }
    }
}

template <class T>
void outer_shared(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    T* out = frames[0]->at(in.out);
    int64_t i = 0;
    for (; i + 4 <= in.n0; i += 4) {
        int64_t j = 0;
        for (; j + 2 <= in.n1; j += 2) outer_shared_block<T, 4, 2>(in, frames, n_frames, i, j, out);
        for (; j < in.n1; ++j) outer_shared_block<T, 4, 1>(in, frames, n_frames, i, j, out);
    }
    for (; i < in.n0; ++i) {
        for (int64_t j = 0; j < in.n1; ++j) outer_shared_block<T, 1, 1>(in, frames, n_frames, i, j, out);
    }
}

// out[i * s0] += a[i], summed over frames, and over lanes if out is shared.
template <class T>
void sums(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    const TileFrame<T>& f = *frames[0];
    const int64_t L = f.lanes;
    const bool shared = in.out.base == base_gshared;
    T* out = f.at(in.out);
    for (int64_t i = 0; i < in.n0; ++i) {
        T* to = out + i * in.out.s0 * (shared ? 1 : L);
        for (int64_t s = 0; s < n_frames; ++s) {
            const T* a = frames[s]->at(in.a) + i * L;
            if (!shared) {
                for (int64_t lane = 0; lane < f.active; ++lane) to[lane] += a[lane];
            } else if (L == 1) {
                *to += *a;
            } else {
                Vec<T> sum{};
                for (int64_t lane = 0; lane < f.active; lane += Simd<T>::W) sum = sum + load<T>(a + lane);
                *to += lane_sum<T>(sum);
            }
        }
    }
}

template <class T>
void run(const TileInstruction* code, int64_t n, const TileFrame<T>* const* frames, int64_t n_frames) {
    if (n_frames == 0) return;
    for (int64_t i = 0; i < n; ++i) {
        if (code[i].op == op_acc) {
            sums(code[i], frames, n_frames);
        } else if (frames[0]->lanes == 1) {
            outer_row(code[i], frames, n_frames);
        } else if (code[i].out.base == base_gshared) {
            outer_shared(code[i], frames, n_frames);
        } else {
            outer_lanes(code[i], frames, n_frames);
        }
    }
}

}  // namespace

const TileAccumulateKernels tile_accumulate_kernels = {run<float>, run<double>};

}  // namespace fastode::FASTODE_ISA
