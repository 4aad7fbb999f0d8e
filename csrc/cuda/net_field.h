// The layers of one sample in the hands of a group of threads: matrices in registers, vectors in shared memory.
#pragma once

#include "cuda/activation.h"
#include "cuda/net_shape.h"

namespace fastode {

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) NetPack {
    T value[kCount];
};

template <class Shape, class T, class Group, bool kAdjoint>
struct NetField {
    static constexpr int kDim = Shape::kDim, kSplit = Shape::kSplit, kCols = Shape::kCols, kPack = Shape::kPack;
    static constexpr int kLayers = Shape::kLayers, kPitch = Shape::kPitch;
    static constexpr bool kKept = Shape::kRowsShared || (kAdjoint && Shape::kColsShared);
    // Numbers of shared memory that no vector may use.
    static constexpr int kReserved = kKept ? kLayers * Shape::kMatrix : 0;
    static constexpr bool kHaveRows = !Shape::kRowsShared, kHaveCols = kAdjoint && !Shape::kColsShared;
    using P = NetPack<T, kPack>;
    template <int kCount>
    using Local = typename Group::template Local<T, kCount>;

    const Group& group;
    T* matrix;  // kLayers matrices if they stay in shared memory, else room for one
    Local<kLayers> bias = {};
    Local<kHaveRows ? kLayers * kCols : 1> rows = {};
    Local<kHaveCols ? kLayers * kCols : 1> cols = {};

    FASTODE_HOST_DEVICE static int row_of(int rank) { return rank / kSplit; }
    FASTODE_HOST_DEVICE static int part_of(int rank) { return rank % kSplit; }
    // Of the threads that share a row, the one that writes.
    FASTODE_HOST_DEVICE static bool leads(int rank) { return part_of(rank) == 0; }
    // What the leading thread of a row wrote is seen by the others, and what they read may be written.
    FASTODE_HOST_DEVICE void sync_row() const {
        if constexpr (kSplit > 1) group.sync_neighbours();
    }
    // The first column of a thread's pack number k.
    FASTODE_HOST_DEVICE static int column(int part, int k) { return (k * kSplit + part) * kPack; }
    FASTODE_HOST_DEVICE T* shared_matrix(int l) const { return matrix + (kKept ? l * Shape::kMatrix : 0); }

    // Reads a sample's matrices, neighbouring threads neighbouring numbers, and hands them out by way of shared memory.
    FASTODE_HOST_DEVICE void load(const NetLayer<T>* layers, int64_t b) {
        FASTODE_UNROLL
        for (int l = 0; l < kLayers; ++l) {
            const NetLayer<T>& layer = layers[l];
            const T* weight = layer.weight + b * layer.weight_stride;
            T* to = shared_matrix(l);
            group.sync();
            group.each([&](int rank) {
                // Along the direction in which the numbers lie, if there is one.
                const bool turned = layer.row_stride < layer.col_stride;
                for (int i = rank; i < kDim * kDim; i += Group::kSize) {
                    const int slow = i / kDim, fast = i % kDim;
                    const int r = turned ? fast : slow, c = turned ? slow : fast;
                    const bool there = r < layer.rows && c < layer.cols;
                    to[r * kPitch + c] =
                        there ? layer.alpha * weight[r * layer.row_stride + c * layer.col_stride] : T(0);
                }
            });
            group.sync();
            group.each([&](int rank) {
                const int row = row_of(rank), part = part_of(rank);
                const bool there = row < layer.rows && layer.bias != nullptr;
                bias.at(rank, l) = there ? layer.bias[b * layer.bias_stride + row * layer.bias_step] : T(0);
                if constexpr (kHaveRows) {
                    FASTODE_UNROLL
                    for (int i = 0; i < kCols; ++i) {
                        const int c = column(part, i / kPack) + i % kPack;
                        rows.at(rank, l * kCols + i) = to[row * kPitch + c];
                    }
                }
                if constexpr (kHaveCols) {
                    FASTODE_UNROLL
                    for (int i = 0; i < kCols; ++i) {
                        const int r = column(part, i / kPack) + i % kPack;
                        cols.at(rank, l * kCols + i) = to[r * kPitch + row];
                    }
                }
            });
        }
        group.sync();
    }

    // W_l x for the thread's row, with x (kDim,) in shared memory; the same in all threads of the row.
    template <int l>
    FASTODE_HOST_DEVICE void product(const T* x, Local<1>& out) {
        group.each([&](int rank) {
            const int row = row_of(rank), part = part_of(rank);
            const T* from = kHaveRows ? nullptr : shared_matrix(l) + row * kPitch;
            T sum[kPack];
            FASTODE_UNROLL
            for (int v = 0; v < kPack; ++v) sum[v] = T(0);
            FASTODE_UNROLL
            for (int k = 0; k < kCols / kPack; ++k) {
                const P pack = *reinterpret_cast<const P*>(x + column(part, k));
                if constexpr (kHaveRows) {
                    FASTODE_UNROLL
                    for (int v = 0; v < kPack; ++v) {
                        sum[v] = multiply_add(rows.at(rank, l * kCols + k * kPack + v), pack.value[v], sum[v]);
                    }
                } else {
                    const P w = *reinterpret_cast<const P*>(from + column(part, k));
                    FASTODE_UNROLL
                    for (int v = 0; v < kPack; ++v) sum[v] = multiply_add(w.value[v], pack.value[v], sum[v]);
                }
            }
            T total = sum[0];
            FASTODE_UNROLL
            for (int v = 1; v < kPack; ++v) total += sum[v];
            out.at(rank, 0) = total;
        });
        group.template sum_neighbours<kSplit>(out);
    }

    // W_l^T u likewise.
    template <int l>
    FASTODE_HOST_DEVICE void product_transposed(const T* u, Local<1>& out) {
        group.each([&](int rank) {
            const int row = row_of(rank), part = part_of(rank);
            const T* from = shared_matrix(l) + row;
            T sum[kPack];
            FASTODE_UNROLL
            for (int v = 0; v < kPack; ++v) sum[v] = T(0);
            FASTODE_UNROLL
            for (int k = 0; k < kCols / kPack; ++k) {
                const P pack = *reinterpret_cast<const P*>(u + column(part, k));
                FASTODE_UNROLL
                for (int v = 0; v < kPack; ++v) {
                    T w;
                    if constexpr (kHaveCols) {
                        w = cols.at(rank, l * kCols + k * kPack + v);
                    } else {
                        w = from[(column(part, k) + v) * kPitch];
                    }
                    sum[v] = multiply_add(w, pack.value[v], sum[v]);
                }
            }
            T total = sum[0];
            FASTODE_UNROLL
            for (int v = 1; v < kPack; ++v) total += sum[v];
            out.at(rank, 0) = total;
        });
        group.template sum_neighbours<kSplit>(out);
    }
};

}  // namespace fastode
