// How the threads of a group share the matrices of a sample, for each size and type.
#pragma once

#include "cuda/group.h"
#include "cuda/net_state.h"

namespace fastode {

// Matrices are padded to kDim x kDim. kSplit neighbouring threads share a row, each with kCols of its columns: packs of
// kPack = 16 bytes in turn, so that the threads of a warp read kSplit neighbouring packs of a vector at once.
constexpr int larger(int a, int b) { return a > b ? a : b; }

template <class T, int kDimension, int kLayerCount>
struct NetShape {
    static constexpr int kDim = kDimension, kLayers = kLayerCount;
    static constexpr bool kStreamed = false;
    static constexpr int kWords = static_cast<int>(sizeof(T)) / 4 * kLayers;  // registers per column of all layers
    // At most 32 registers for a thread's part of the matrices, once for each of rows, columns and gradients; but no
    // more than 512 threads.
    static constexpr int kWanted = kDim * kWords / 32;
    static constexpr int kLeast = kDim < kWarp ? kWarp / kDim : 1;
    static constexpr int kMost = kDim >= 128 ? 4 : 8;
    static constexpr int kSplit = kWanted < kLeast ? kLeast : kWanted > kMost ? kMost : kWanted;
    static constexpr int kCols = kDim / kSplit;
    static constexpr int kThreads = kDim * kSplit;
    static constexpr int kPack = kCols < 16 / static_cast<int>(sizeof(T)) ? kCols : 16 / static_cast<int>(sizeof(T));
    static constexpr int kGroups = kThreads == kWarp ? 4 : 1;  // samples of a block

    // What the compiler may count on: blocks of a multiprocessor with some 200 registers for each thread. Left to
    // itself it prefers more blocks, and spills.
    static constexpr int kBlocks = larger(1, 65536 / (kThreads * kGroups * 200));

    // Where registers are short, products read the matrices in shared memory.
    static constexpr bool kRowsShared = kDim >= 128 && kWords > 1;
    static constexpr bool kColsShared = kDim >= 128 || (kDim >= 64 && kWords > 2);
    static constexpr int kPitch = kDim + 16 / static_cast<int>(sizeof(T));  // of a matrix in shared memory
    static constexpr int kMatrix = kDim * kPitch;

    // Numbers in shared memory for each sample: matrices, then vectors; on top of each other where matrices only pass
    // through.
    static constexpr int forward_vectors(int s) { return kDim * (4 + s) + kNetStages; }
    static constexpr int adjoint_vectors(int s) { return kDim * (s * (2 * kLayers + 1) + 2 + kNetDegree + 1); }
    static constexpr int shared(int vectors, bool kept) {
        return kept ? kLayers * kMatrix + vectors : larger(kMatrix, vectors);
    }
    static constexpr int forward_shared(int s) { return shared(forward_vectors(s), kRowsShared); }
    static constexpr int adjoint_shared(int s) { return shared(adjoint_vectors(s), kRowsShared || kColsShared); }
};

// Matrices that fit on chip no more: a thread has a row, and kTile columns at a time pass through shared memory.
template <class T, int kDimension, int kLayerCount>
struct NetWideShape {
    static constexpr int kDim = kDimension, kLayers = kLayerCount;
    static constexpr bool kStreamed = true;
    static constexpr int kSplit = 1, kThreads = kDim, kGroups = 1, kBlocks = 1;
    static constexpr int kTile = 64 / static_cast<int>(sizeof(T));  // 64 bytes of each row
    static constexpr int kPitch = kTile + 1;
    static constexpr int kMatrix = kDim * kPitch;
    using Vectors = NetShape<T, kDimension, kLayerCount>;
    static constexpr int forward_shared(int s) { return kMatrix + Vectors::forward_vectors(s); }
    static constexpr int adjoint_shared(int s) { return kMatrix + Vectors::adjoint_vectors(s); }
};

}  // namespace fastode
