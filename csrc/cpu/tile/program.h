// A vector field as instructions: what the `cpu` backend runs.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/tile/instruction.h"

namespace fastode {

using TileCode = std::vector<TileInstruction>;

// A block of a leaf that is copied: dst[r * cols + c] = leaf[src + r * src_rs + c * src_cs].
struct TilePack {
    int64_t leaf, src, rows, cols, src_rs, src_cs, dst;
};

struct TileProgram {
    int64_t dim = 0, lanes = 1, backward_lanes = 1;
    TileCode forward, forward_keep, reverse, accumulate;
    std::vector<int32_t> maps;
    int64_t n_tmp = 0, n_tmp_keep = 0, n_adj = 0, n_shared = 0, n_param = 0, n_gshared = 0, n_gparam = 0;
    std::vector<TilePack> shared_pack, param_pack;
    std::vector<int64_t> shared_sizes, param_sizes;

    // Throws std::invalid_argument if an instruction or a copy could touch memory outside its base, or if the output
    // of an instruction overlaps what it reads in a way that it does not allow.
    void check() const;

    bool has_reverse() const { return !reverse.empty(); }
};

// Whether a routine depends on the time.
bool reads_time(const TileCode& code);

// Rough time of a routine for one sample in nanoseconds, from its instructions.
double estimated_ns(const TileCode& code, int64_t lanes);

}  // namespace fastode
