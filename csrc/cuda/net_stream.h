// The layers of one sample whose matrices do not fit on chip: read again at each product, a tile of columns at a time.
#pragma once

#include <type_traits>

#include "cuda/net_field.h"

namespace fastode {

// See NetField; a thread has a row.
template <class Shape, class T, class Group>
struct NetStream {
    static constexpr int kDim = Shape::kDim, kLayers = Shape::kLayers, kTile = Shape::kTile, kPitch = Shape::kPitch;
    static constexpr int kReserved = Shape::kMatrix, kCols = 1, kPack = 1, kSums = 4;
    template <int kCount>
    using Local = typename Group::template Local<T, kCount>;

    const Group& group;
    T* matrix;  // the tile, (kDim, kPitch)
    Local<kLayers> bias = {};
    const NetLayer<T>* layer = nullptr;
    int64_t sample = 0;

    FASTODE_HOST_DEVICE static int row_of(int rank) { return rank; }
    FASTODE_HOST_DEVICE static bool leads(int) { return true; }
    FASTODE_HOST_DEVICE void sync_row() const {}

    FASTODE_HOST_DEVICE void load(const NetLayer<T>* layers, int64_t b) {
        layer = layers;
        sample = b;
        group.each([&](int row) {
            for (int l = 0; l < kLayers; ++l) {
                const NetLayer<T>& own = layers[l];
                const bool there = row < own.rows && own.bias != nullptr;
                bias.at(row, l) = there ? own.bias[b * own.bias_stride + row * own.bias_step] : T(0);
            }
        });
    }

    template <int l>
    FASTODE_HOST_DEVICE void product(const T* x, Local<1>& out) {
        const NetLayer<T>& own = layer[l];
        multiply(own, own.rows, own.cols, own.row_stride, own.col_stride, x, out);
    }

    template <int l>
    FASTODE_HOST_DEVICE void product_transposed(const T* u, Local<1>& out) {
        const NetLayer<T>& own = layer[l];
        multiply(own, own.cols, own.rows, own.col_stride, own.row_stride, u, out);
    }

    // out = alpha M x for a matrix (rows, cols) with strides, and x (kDim,) in shared memory, zero beyond cols.
    FASTODE_HOST_DEVICE void multiply(const NetLayer<T>& own, int rows, int cols, int row_stride, int col_stride,
                                      const T* x, Local<1>& out) {
        const T* weight = own.weight + sample * own.weight_stride;
        group.each([&](int rank) { out.at(rank, 0) = T(0); });
        for (int first = 0; first < cols; first += kTile) {
            group.sync();  // nobody reads the tile before any more
            group.each([&](int rank) {
                // Neighbouring threads neighbouring numbers, whichever way they lie.
                const bool turned = row_stride < col_stride;
                for (int i = rank; i < kDim * kTile; i += Group::kSize) {
                    const int r = turned ? i % kDim : i / kTile, c = turned ? i / kDim : i % kTile;
                    const bool there = r < rows && first + c < cols;
                    const int64_t at =
                        static_cast<int64_t>(r) * row_stride + static_cast<int64_t>(first + c) * col_stride;
                    matrix[r * kPitch + c] = there ? weight[at] : T(0);
                }
            });
            group.sync();
            group.each([&](int rank) {
                // Sums of few terms, added up: the rounding of one long sum grows with its length.
                T sum[kSums] = {};
                FASTODE_UNROLL
                for (int c = 0; c < kTile; ++c) {
                    sum[c % kSums] = multiply_add(matrix[rank * kPitch + c], x[first + c], sum[c % kSums]);
                }
                out.at(rank, 0) += (sum[0] + sum[1]) + (sum[2] + sum[3]);
            });
        }
        group.each([&](int rank) { out.at(rank, 0) *= own.alpha; });
    }

    // grad += alpha sum_i u_i x_i^T in memory, with u and x (n, kDim); n = 0 sets it to zero. A number is always the
    // same thread's: no waiting between two calls.
    FASTODE_HOST_DEVICE void add_gradient(const NetLayer<T>& own, int64_t b, const T* u, const T* x, int n) const {
        if (own.grad_weight == nullptr) return;
        T* grad = own.grad_weight + b * own.grad_weight_stride;
        const bool turned = own.row_stride < own.col_stride;
        const int fast = turned ? own.rows : own.cols;
        group.each([&](int rank) {
            for (int i = rank; i < own.rows * own.cols; i += Group::kSize) {
                const int r = turned ? i % fast : i / fast, c = turned ? i / fast : i % fast;
                T& to = grad[static_cast<int64_t>(r) * own.row_stride + static_cast<int64_t>(c) * own.col_stride];
                T sum = T(0);
                for (int j = 0; j < n; ++j) sum = multiply_add(u[j * kDim + r], x[j * kDim + c], sum);
                to = n == 0 ? T(0) : multiply_add(own.alpha, sum, to);
            }
        });
    }
};

template <class Shape, class T, class Group, bool kAdjoint, bool kStreamed = Shape::kStreamed>
struct NetFieldChoice {
    using Type = NetField<Shape, T, Group, kAdjoint>;
};

template <class Shape, class T, class Group, bool kAdjoint>
struct NetFieldChoice<Shape, T, Group, kAdjoint, true> {
    using Type = NetStream<Shape, T, Group>;
};

template <class Shape, class T, class Group, bool kAdjoint>
using NetFieldOf = typename NetFieldChoice<Shape, T, Group, kAdjoint>::Type;

}  // namespace fastode
