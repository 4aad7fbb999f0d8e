#include "cpu/tile/dense.h"

#include <algorithm>
#include <vector>

#include "cpu/combine.h"
#include "cpu/tile/backward.h"

namespace fastode {
namespace {

constexpr int64_t kChunk = 4096;  // steps whose stages are held at a time

void run_combine(const CombineArgs<float>& args, int64_t n) { combine_kernels().f32(args, 0, n); }
void run_combine(const CombineArgs<double>& args, int64_t n) { combine_kernels().f64(args, 0, n); }

// out = base + h * sum_j coef(j) k[j] for n rows, without the terms whose coefficient is zero.
template <class T, class Coef>
void combine(T* out, const T* base, const double* h, int n_terms, const Coef& coef,
             const std::vector<std::vector<T>>& k, int64_t n, int64_t dim) {
    CombineArgs<T> args;
    args.out = out;
    args.base = base;
    args.scale = h;
    args.d = dim;
    args.n_terms = 0;
    for (int j = 0; j < n_terms; ++j) {
        if (coef(j) == 0.0) continue;
        args.coef[args.n_terms] = static_cast<T>(coef(j));
        args.x[args.n_terms++] = k[static_cast<size_t>(j)].data();
    }
    if (args.n_terms > 0) return run_combine(args, n);
    if (base == nullptr) {
        std::fill_n(out, n * dim, T(0));
    } else {
        std::copy_n(base, n * dim, out);
    }
}

template <class T>
void write_places(const TileDense<T>& d) {
    const int64_t total = d.offsets[d.batch];
    for (int64_t b = 0; b < d.batch; ++b) {
        const int64_t first = d.offsets[b], n = d.offsets[b + 1] - first;
        const int64_t last = std::min(first + std::max<int64_t>(n - 1, 0), std::max<int64_t>(total - 1, 0));
        const double end = n > 0 ? d.table[3 * last + 1] : d.reached[b];
        for (int64_t j = 0; j < d.longest; ++j) {
            const int64_t at = j * d.batch + b;
            d.start[at] = j < n ? d.table[3 * (first + j)] : end;
            d.size[at] = j < n ? d.table[3 * (first + j) + 2] : 0.0;
            d.rows[at] = j < n ? first + j : last;
        }
    }
}

}  // namespace

template <class T>
void tile_dense(const TileProgram& program, const TileMethod& method, const TileDense<T>& d) {
    write_places(d);
    const int64_t total = d.offsets[d.batch], dim = program.dim, degree = method.degree;
    const auto largest = static_cast<size_t>(std::min(kChunk, total));
    std::vector<int64_t> owner(largest);
    std::vector<double> t(largest), start(largest), h(largest);
    std::vector<T> y(largest * static_cast<size_t>(dim));
    std::vector<std::vector<T>> k(static_cast<size_t>(method.s), y);
    int64_t sample = 0;
    for (int64_t first = 0; first < total; first += kChunk) {
        const int64_t n = std::min(kChunk, total - first);
        for (int64_t i = 0; i < n; ++i) {
            while (d.offsets[sample + 1] <= first + i) ++sample;
            const auto at = static_cast<size_t>(i);
            owner[at] = sample;
            start[at] = d.table[3 * (first + i)];
            h[at] = d.table[3 * (first + i) + 2];
        }
        const T* states = d.states + first * dim;
        for (int i = 0; i < method.s; ++i) {
            if (i > 0) {
                combine(y.data(), states, h.data(), i, [&](int j) { return method.a_at(i, j); }, k, n, dim);
            }
            const double c = method.c[static_cast<size_t>(i)];
            for (size_t j = 0; j < static_cast<size_t>(n); ++j) t[j] = i > 0 ? start[j] + c * h[j] : start[j];
            tile_evaluate(program, n, t.data(), i > 0 ? y.data() : states, d.leaves, k[static_cast<size_t>(i)].data(),
                          d.threads, owner.data());
        }
        T* coefs = d.coefs + first * (degree + 1) * dim;
        const auto put = [&](int64_t m, const T* from) {
            for (int64_t i = 0; i < n; ++i) std::copy_n(from + i * dim, dim, coefs + (i * (degree + 1) + m) * dim);
        };
        put(0, states);
        for (int m = 0; m < degree; ++m) {
            combine<T>(y.data(), nullptr, h.data(), method.s, [&](int j) { return method.q_at(j, m); }, k, n, dim);
            put(m + 1, y.data());
        }
    }
}

template void tile_dense(const TileProgram&, const TileMethod&, const TileDense<float>&);
template void tile_dense(const TileProgram&, const TileMethod&, const TileDense<double>&);

}  // namespace fastode
