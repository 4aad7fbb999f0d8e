#include "cpu/isa/vec.h"
#include "cpu/tile/kernels.h"

namespace fastode::FASTODE_ISA {
namespace {

// out[i, j][lane] += sum over frames and k of a[i, k][lane] b[j, k][lane]: gradients of per-sample matrices.
template <class T>
void outer_lanes(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    constexpr int W = Simd<T>::W;
    const TileFrame<T>& f = *frames[0];
    const int64_t L = f.lanes;
    T* out = f.at(in.out);
    for (int64_t i = 0; i < in.n0; ++i) {
        for (int64_t j = 0; j < in.n1; ++j) {
            T* to = out + (i * in.out.s0 + j * in.out.s1) * L;
            for (int64_t lane = 0; lane < f.active; lane += W) {
                Vec<T> sum = load<T>(to + lane);
                for (int64_t s = 0; s < n_frames; ++s) {
                    const T* a = frames[s]->at(in.a) + i * in.a.s0 * L + lane;
                    const T* b = frames[s]->at(in.b) + j * in.b.s0 * L + lane;
                    for (int64_t k = 0; k < in.n2; ++k) {
                        sum = fma(load<T>(a + k * in.a.s1 * L), load<T>(b + k * in.b.s1 * L), sum);
                    }
                }
                store<T>(to + lane, sum);
            }
        }
    }
}

// The same for one sample, vectors along j where b and out are contiguous there.
template <class T>
void outer_row(const TileInstruction& in, const TileFrame<T>* const* frames, int64_t n_frames) {
    constexpr int W = Simd<T>::W;
    const TileFrame<T>& f = *frames[0];
    T* out = f.at(in.out);
    const bool along_j = in.out.s1 == 1 && in.b.s0 == 1;
    const bool along_i = !along_j && in.out.s0 == 1 && in.a.s0 == 1;
    const TileOperand& fast = along_i ? in.a : in.b;
    const TileOperand& slow = along_i ? in.b : in.a;
    const int64_t n_fast = along_i ? in.n0 : in.n1, n_slow = along_i ? in.n1 : in.n0;
    const int64_t fast_step = along_i ? in.out.s0 : in.out.s1, slow_step = along_i ? in.out.s1 : in.out.s0;
    for (int64_t i = 0; i < n_slow; ++i) {
        T* to = out + i * slow_step;
        int64_t j = 0;
        if (along_i || along_j) {
            for (; j < n_fast; j += W) {
                Vec<T> sum = load<T>(to + j);
                for (int64_t s = 0; s < n_frames; ++s) {
                    const T* a = frames[s]->at(slow) + i * slow.s0;
                    const T* b = frames[s]->at(fast) + j;
                    for (int64_t k = 0; k < in.n2; ++k) {
                        sum = fma(splat<T>(a[k * slow.s1]), load<T>(b + k * fast.s1), sum);
                    }
                }
                if (j + W <= n_fast) {
                    store<T>(to + j, sum);
                } else {
                    store_part<T>(to + j, sum, n_fast - j);
                }
            }
            continue;
        }
        for (; j < n_fast; ++j) {
            T sum = to[j * fast_step];
            for (int64_t s = 0; s < n_frames; ++s) {
                const T* a = frames[s]->at(slow) + i * slow.s0;
                const T* b = frames[s]->at(fast) + j * fast.s0;
                for (int64_t k = 0; k < in.n2; ++k) sum = multiply_add(a[k * slow.s1], b[k * fast.s1], sum);
            }
            to[j * fast_step] = sum;
        }
    }
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
