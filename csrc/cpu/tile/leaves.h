// The weights and per-sample constants of a call, and how they come into a tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/tile/program.h"

namespace fastode {

// Pointers as the caller has them. Per-sample leaf i of sample b starts at params[i] + b * strides[i].
template <class T>
struct TileLeaves {
    std::vector<const T*> shared, params;
    std::vector<int64_t> strides;
};

// All of SHARED.
template <class T>
void pack_shared(const TileProgram& program, const TileLeaves<T>& leaves, T* out) {
    for (const TilePack& p : program.shared_pack) {
        const T* from = leaves.shared[static_cast<size_t>(p.leaf)] + p.src;
        for (int64_t r = 0; r < p.rows; ++r) {
            for (int64_t c = 0; c < p.cols; ++c) out[p.dst + r * p.cols + c] = from[r * p.src_rs + c * p.src_cs];
        }
    }
}

// The constants of one sample into a lane of PARAM.
template <class T>
void pack_param(const TileProgram& program, const TileLeaves<T>& leaves, int64_t sample, T* out, int64_t lanes,
                int64_t lane) {
    for (const TilePack& p : program.param_pack) {
        const auto leaf = static_cast<size_t>(p.leaf);
        const T* from = leaves.params[leaf] + sample * leaves.strides[leaf] + p.src;
        T* to = out + p.dst * lanes + lane;
        for (int64_t r = 0; r < p.rows; ++r) {
            for (int64_t c = 0; c < p.cols; ++c) to[(r * p.cols + c) * lanes] = from[r * p.src_rs + c * p.src_cs];
        }
    }
}

// Rows to and from lanes.
template <class T>
void put_lane(T* tile, int64_t lanes, int64_t lane, const T* row, int64_t n) {
    for (int64_t i = 0; i < n; ++i) tile[i * lanes + lane] = row[i];
}
template <class T>
void get_lane(T* row, const T* tile, int64_t lanes, int64_t lane, int64_t n) {
    for (int64_t i = 0; i < n; ++i) row[i] = tile[i * lanes + lane];
}

inline int64_t whole_lanes(int64_t n, int64_t lanes) { return lanes == 1 ? 1 : (n + 15) / 16 * 16; }

}  // namespace fastode
