// The memory of several stages of a tile for a backward pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/tile/backward.h"
#include "cpu/tile/workspace.h"

namespace fastode {

template <class T>
class StageFrames {
public:
    // Frames of n stages that share constants and gradients; gshared may be null.
    StageFrames(const TileProgram& program, int n, T* shared, T* gshared, Workspace& memory) : program_(program) {
        const int64_t lanes = program.backward_lanes, dim = program.dim;
        T* param = memory.take<T>(program.n_param * lanes);
        T* gparam = memory.take<T>(program.n_gparam * lanes);
        for (int i = 0; i < n; ++i) {
            TileFrame<T>& f = frame_[i];
            std::fill_n(f.base, kTileBases, nullptr);
            for (const int base : {base_in, base_out, base_gout, base_gin}) f.base[base] = memory.take<T>(dim * lanes);
            f.base[base_time] = memory.take<T>((lanes + 15) / 16 * 16);
            f.base[base_tmp] = memory.take<T>(program.n_tmp_keep * lanes);
            f.base[base_adj] = memory.take<T>(program.n_adj * lanes);
            f.base[base_shared] = shared;
            f.base[base_param] = param;
            f.base[base_gshared] = gshared;
            f.base[base_gparam] = gparam;
            f.maps = program.maps.data();
            f.lanes = lanes;
            f.active = lanes;
        }
        count_ = n;
    }

    TileFrame<T>& operator[](int i) { return frame_[i]; }

    void set_active(int64_t n) {
        for (int i = 0; i < count_; ++i) frame_[i].active = n;
    }
    void set_gshared(T* gshared) {
        for (int i = 0; i < count_; ++i) frame_[i].base[base_gshared] = gshared;
    }
    void load_params(const TileLeaves<T>& leaves, const int64_t* samples, int64_t n) {
        pack_params(program_, leaves, samples, n, frame_[0].base[base_param], program_.backward_lanes);
    }
    void clear_gradients() {
        std::fill_n(frame_[0].base[base_gparam], program_.n_gparam * program_.backward_lanes, T(0));
    }
    // The gradients of per-sample leaves of the first n lanes.
    void write_gradients(const TileGradients<T>& gradients, const int64_t* samples, int64_t n) const {
        int64_t at = 0;
        for (size_t leaf = 0; leaf < program_.param_sizes.size(); ++leaf) {
            const int64_t size = program_.param_sizes[leaf];
            if (gradients.params[leaf] != nullptr) {
                get_lanes(frame_[0].base[base_gparam] + at * program_.backward_lanes, program_.backward_lanes, n, size,
                          [&](int64_t lane) { return gradients.params[leaf] + samples[lane] * size; });
            }
            at += size;
        }
    }

private:
    const TileProgram& program_;
    TileFrame<T> frame_[kMaxStages];
    int count_ = 0;
};

// Runs body(group, gshared) for each group of samples on several threads, each with its own copy of the gradients of
// the shared leaves, and adds these up in the order of the groups.
template <class T, class Body>
void over_groups(const TileProgram& program, int64_t n_groups, int threads, const std::vector<T*>& out, Body&& body) {
    Workspace& memory = Workspace::of_this_thread();
    const bool wanted = std::any_of(out.begin(), out.end(), [](const T* p) { return p != nullptr; });
    const int64_t n = program.n_gshared;
    T* copies = wanted ? memory.take<T>(n * n_groups) : nullptr;
    parallel_chunks(n_groups, threads, [&](int64_t group, int) {
        Workspace& own = Workspace::of_this_thread();
        const Workspace::Scope scope(own);
        T* copy = wanted ? copies + n * group : own.template take<T>(n);
        std::fill_n(copy, n, T(0));
        body(group, copy, own);
    });
    if (!wanted) return;
    constexpr int64_t kGrain = 8192;
    parallel_chunks((n + kGrain - 1) / kGrain, threads, [&](int64_t piece, int) {
        const int64_t end = std::min(n, (piece + 1) * kGrain);
        for (int64_t group = 1; group < n_groups; ++group) {
            for (int64_t i = piece * kGrain; i < end; ++i) copies[i] += copies[group * n + i];
        }
    });
    int64_t at = 0;
    for (size_t leaf = 0; leaf < program.shared_sizes.size(); ++leaf) {
        const int64_t size = program.shared_sizes[leaf];
        if (out[leaf] != nullptr) {
            if (n_groups > 0) {
                std::copy_n(copies + at, size, out[leaf]);
            } else {
                std::fill_n(out[leaf], size, T(0));
            }
        }
        at += size;
    }
}

// Groups of samples for gradients: they depend on the batch and the program alone, and their copies of the gradients
// of the shared leaves stay within some 32 MB.
inline int64_t gradient_groups(const TileProgram& program, int64_t batch) {
    constexpr int64_t kMostElements = int64_t{1} << 23;
    const int64_t lanes = program.backward_lanes, least = lanes == 1 ? 8 : 2 * lanes;
    const int64_t most = std::clamp<int64_t>(kMostElements / std::max<int64_t>(1, program.n_gshared), 4, 64);
    return std::min<int64_t>(most, (batch + least - 1) / least);
}

}  // namespace fastode
