// The weights and per-sample constants of a call, and how rows of the caller's memory come into the lanes of a tile.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/tile/kernels.h"
#include "cpu/tile/program.h"

namespace fastode {

constexpr int64_t kMostLanes = 256;

// Pointers as the caller has them. Per-sample leaf i of sample b starts at params[i] + b * strides[i].
template <class T>
struct TileLeaves {
    std::vector<const T*> shared, params;
    std::vector<int64_t> strides;
};

inline const TilePacking<float>& packing_kernels(const float*) { return tile_pack_kernels().f32; }
inline const TilePacking<double>& packing_kernels(const double*) { return tile_pack_kernels().f64; }

inline int64_t whole_lanes(int64_t n, int64_t lanes) { return lanes == 1 ? 1 : (n + 15) / 16 * 16; }

// out[r * cols + c] = from[r * src_rs + c * src_cs]
template <class T>
void copy_block(const TilePack& p, const T* from, T* out) {
    if (p.src_cs == 1 || p.cols == 1) {
        if (p.src_rs == p.cols || p.rows == 1) {
            std::copy_n(from, p.rows * p.cols, out);
        } else {
            for (int64_t r = 0; r < p.rows; ++r) std::copy_n(from + r * p.src_rs, p.cols, out + r * p.cols);
        }
    } else if (p.src_rs == 1) {
        constexpr int64_t kRows = 16;  // at once
        const T* rows[kRows];
        for (int64_t c = 0; c < p.cols; c += kRows) {
            const int64_t n = std::min(kRows, p.cols - c);
            for (int64_t i = 0; i < n; ++i) rows[i] = from + (c + i) * p.src_cs;
            packing_kernels(out).spread(out + c, p.cols, rows, n, p.rows);
        }
    } else {
        for (int64_t r = 0; r < p.rows; ++r) {
            for (int64_t c = 0; c < p.cols; ++c) out[r * p.cols + c] = from[r * p.src_rs + c * p.src_cs];
        }
    }
}

// All of SHARED.
template <class T>
void pack_shared(const TileProgram& program, const TileLeaves<T>& leaves, T* out) {
    for (const TilePack& p : program.shared_pack) {
        copy_block(p, leaves.shared[static_cast<size_t>(p.leaf)] + p.src, out + p.dst);
    }
}

// Runs of numbers into lanes that need not lie side by side: to[i * lanes + lane[k]] = from[k][i * step]. Several at
// once, so that a cache line of the tile is fetched once for them.
template <class T, int kSamples>
void scatter_lanes(T* to, int64_t lanes, const int32_t* lane, const T* const* from, int64_t step, int64_t n) {
    const T* source[kSamples];
    int64_t place[kSamples];
    for (int k = 0; k < kSamples; ++k) {
        source[k] = from[k];
        place[k] = lane[k];
    }
    for (int64_t i = 0; i < n; ++i, to += lanes) {
        for (int k = 0; k < kSamples; ++k) to[place[k]] = source[k][i * step];
    }
}
template <class T>
void put_scattered(T* to, int64_t lanes, const int32_t* lane, const T* const* from, int64_t step, int64_t n,
                   int64_t samples) {
    int64_t k = 0;
    for (; k + 4 <= samples; k += 4) scatter_lanes<T, 4>(to, lanes, lane + k, from + k, step, n);
    for (; k < samples; ++k) scatter_lanes<T, 1>(to, lanes, lane + k, from + k, step, n);
}

// The constants of one sample where a tile has a single lane.
template <class T>
void pack_param(const TileProgram& program, const TileLeaves<T>& leaves, int64_t sample, T* out) {
    for (const TilePack& p : program.param_pack) {
        const auto leaf = static_cast<size_t>(p.leaf);
        copy_block(p, leaves.params[leaf] + sample * leaves.strides[leaf] + p.src, out + p.dst);
    }
}

// The constants of samples first, first + 1, ... into the given lanes.
template <class T>
void pack_scattered(const TileProgram& program, const TileLeaves<T>& leaves, int64_t first, int64_t n,
                    const int32_t* lane, T* out, int64_t lanes) {
    const T* rows[kMostLanes];
    for (const TilePack& p : program.param_pack) {
        const auto leaf = static_cast<size_t>(p.leaf);
        const bool whole = p.src_rs == p.cols * p.src_cs || p.rows == 1;  // one run with a constant step
        const int64_t runs = whole ? 1 : p.rows, length = whole ? p.rows * p.cols : p.cols;
        for (int64_t run = 0; run < runs; ++run) {
            for (int64_t k = 0; k < n; ++k) {
                rows[k] = leaves.params[leaf] + (first + k) * leaves.strides[leaf] + p.src + run * p.src_rs;
            }
            put_scattered(out + (p.dst + run * p.cols) * lanes, lanes, lane, rows, p.src_cs, length, n);
        }
    }
}

// The constants of n samples into the first n lanes.
template <class T>
void pack_params(const TileProgram& program, const TileLeaves<T>& leaves, const int64_t* samples, int64_t n, T* out,
                 int64_t lanes) {
    if (lanes == 1) return pack_param(program, leaves, samples[0], out);
    const T* rows[kMostLanes];
    for (const TilePack& p : program.param_pack) {
        const auto leaf = static_cast<size_t>(p.leaf);
        // Runs of contiguous numbers: everything, the rows, or the columns.
        const bool whole = (p.src_cs == 1 || p.cols == 1) && (p.src_rs == p.cols || p.rows == 1);
        const bool by_rows = p.src_cs == 1 || p.src_rs != 1;
        const int64_t runs = whole ? 1 : by_rows ? p.rows : p.cols;
        const int64_t length = whole ? p.rows * p.cols : by_rows ? p.cols : p.rows;
        const int64_t from_step = by_rows ? p.src_rs : p.src_cs, to_step = by_rows ? p.cols : 1;
        const int64_t stride = (by_rows ? 1 : p.cols) * lanes;
        for (int64_t run = 0; run < runs; ++run) {
            for (int64_t lane = 0; lane < n; ++lane) {
                rows[lane] = leaves.params[leaf] + samples[lane] * leaves.strides[leaf] + p.src + run * from_step;
            }
            T* to = out + (p.dst + run * to_step) * lanes;
            if (!by_rows || p.src_cs == 1 || length == 1) {
                packing_kernels(to).spread(to, stride, rows, n, length);
                continue;
            }
            for (int64_t c = 0; c < length; ++c) {
                for (int64_t lane = 0; lane < n; ++lane) to[c * lanes + lane] = rows[lane][c * p.src_cs];
            }
        }
    }
}

// Asks for part number `part` of `parts` of a row to be in the second-level cache soon.
template <bool kToWrite, class T>
void prefetch_row(const T* row, int64_t size, int part, int parts) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = size * part / parts; i < size * (part + 1) / parts; i += kLine) {
        __builtin_prefetch(row + i, kToWrite ? 1 : 0, 2);
    }
    __asm__ volatile("" : : "r"(row));  // GCC takes a function that only prefetches for one without effect
}

// The same for a sample's constants: the next sample's can come while others are worked on.
template <class T>
void prefetch_param(const TileProgram& program, const TileLeaves<T>& leaves, int64_t sample, int part, int parts) {
    for (size_t leaf = 0; leaf < program.param_sizes.size(); ++leaf) {
        prefetch_row<false>(leaves.params[leaf] + sample * leaves.strides[leaf], program.param_sizes[leaf], part,
                            parts);
    }
}

// Rows of `width` numbers to and from the first n lanes; row(lane) says where each is.
template <class T, class F>
void put_lanes(T* tile, int64_t lanes, int64_t n, int64_t width, F&& row) {
    const T* rows[kMostLanes];
    for (int64_t lane = 0; lane < n; ++lane) rows[lane] = row(lane);
    if (lanes == 1) {
        std::copy_n(rows[0], width, tile);
    } else {
        packing_kernels(tile).spread(tile, lanes, rows, n, width);
    }
}
template <class T, class F>
void get_lanes(const T* tile, int64_t lanes, int64_t n, int64_t width, F&& row) {
    T* rows[kMostLanes];
    for (int64_t lane = 0; lane < n; ++lane) rows[lane] = row(lane);
    if (lanes == 1) {
        std::copy_n(tile, width, rows[0]);
    } else {
        packing_kernels(tile).collect(rows, tile, lanes, n, width);
    }
}

}  // namespace fastode
