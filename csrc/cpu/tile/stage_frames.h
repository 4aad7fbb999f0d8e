// The memory of several stages of a tile for a backward pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/tile/backward.h"
#include "cpu/tile/row_slots.h"
#include "cpu/tile/workspace.h"

namespace fastode {

// Of each stage and slot a frame: lanes layout has one slot, rows have one for each sample under way.
template <class T>
class StageFrames {
public:
    // Frames of n stages that share constants and gradients; gshared may be null. `more` arrays of `dim` components
    // each can be taken beside them.
    StageFrames(const TileProgram& program, int n, int64_t most_slots, int64_t more, T* shared, T* gshared,
                Workspace& memory)
        : program_(program), memory_(memory), stages_(n), lanes_(program.backward_lanes) {
        const int64_t dim = program.dim;
        if (lanes_ == 1) {
            const int64_t stage =
                4 * whole_lines<T>(dim) + whole_lines<T>(program.n_tmp_keep) + whole_lines<T>(program.n_adj);
            const int64_t own = whole_lines<T>(program.n_param) + whole_lines<T>(program.n_gparam) + n * stage;
            slots_ = RowSlots::of<T>(own + more * whole_lines<T>(dim), kCache);
            // Without `more`: how many there are decides in which order gradients by shared leaves are added up, and
            // that must not depend on how many states the record kept.
            slots_.n = RowSlots::of<T>(own, kCache).n;
            slots_.n = std::min(slots_.n, most_slots);
            next_ = memory.take<T>(slots_.n * slots_.stride);
            std::fill_n(next_, slots_.n * slots_.stride, T(0));  // what is computed beyond ends of arrays is harmless
        }
        frame_ = memory.take<TileFrame<T>>(n * slots_.n);
        T *param = take(program.n_param), *gparam = take(program.n_gparam);
        for (int i = 0; i < n; ++i) {
            T* times = memory.take<T>((std::max(lanes_, slots_.n) + 15) / 16 * 16);
            T* base[kTileBases] = {};
            for (const int b : {base_in, base_out, base_gout, base_gin}) base[b] = take(dim);
            base[base_tmp] = take(program.n_tmp_keep);
            base[base_adj] = take(program.n_adj);
            base[base_param] = param;
            base[base_gparam] = gparam;
            for (int64_t slot = 0; slot < slots_.n; ++slot) {
                TileFrame<T>& f = at(i, slot);
                for (int b = 0; b < kTileBases; ++b) f.base[b] = base[b] + (base[b] ? slot * slots_.stride : 0);
                f.base[base_time] = times + slot;
                f.base[base_shared] = shared;
                f.base[base_gshared] = gshared;
                f.maps = program.maps.data();
                f.lanes = f.active = lanes_;
            }
        }
    }

    // Samples at once, and where component i of one of them is: sample * sample_step() + i * lanes.
    int64_t width() const { return lanes_ == 1 ? slots_.n : lanes_; }
    int64_t sample_step() const { return lanes_ == 1 ? slots_.stride : 1; }

    // Of slot 0.
    TileFrame<T>& operator[](int stage) { return frame_[stage]; }
    TileFrame<T>& at(int stage, int64_t slot) { return frame_[slot * stages_ + stage]; }

    // n components of each slot, or of all lanes; in rows no more in total than the constructor was told.
    T* take(int64_t n) {
        if (lanes_ != 1) return memory_.take<T>(n * lanes_);
        T* result = next_;
        next_ += whole_lines<T>(n);
        return result;
    }

    // The samples that are worked on from now on: the first n, rounded up to vectors in lanes.
    int64_t set_active(int64_t n) {
        active_ = lanes_ == 1 ? n : whole_lanes(n, lanes_);
        for (int i = 0; lanes_ != 1 && i < stages_; ++i) frame_[i].active = active_;
        return active_;
    }
    TileSlots slots() const {
        static constexpr int32_t kNumbers[kMostSlots] = {0, 1, 2, 3, 4, 5, 6, 7};
        return {kNumbers, lanes_ == 1 ? active_ : 1, slots_.stride};
    }
    // Of the active slots the frames of one stage, or of the one slot of lanes.
    int64_t of_stage(int stage, const TileFrame<T>** frames) {
        const int64_t n = slots().n;
        for (int64_t slot = 0; slot < n; ++slot) frames[slot] = &at(stage, slot);
        return n;
    }
    void run(const TileCode& code, int stage) {
        const TileFrame<T>* frames[kMostSlots];
        const int64_t n = of_stage(stage, frames);
        run_code(code, frames, n);
    }
    // The accumulate routine over some of the stages.
    void accumulate(const int* stages, int n) {
        const TileFrame<T>* frames[kMaxStages];
        for (int64_t slot = 0; slot < slots().n; ++slot) {
            for (int i = 0; i < n; ++i) frames[i] = &at(stages[i], slot);
            run_accumulate(program_.accumulate, frames, n);
        }
    }

    void load_params(const TileLeaves<T>& leaves, const int64_t* samples, int64_t n) {
        if (lanes_ != 1) return pack_params(program_, leaves, samples, n, frame_[0].base[base_param], lanes_);
        for (int64_t slot = 0; slot < n; ++slot) {
            pack_param(program_, leaves, samples[slot], at(0, slot).base[base_param]);
        }
    }
    void clear_gradients() {
        for (int64_t slot = 0; slot < slots_.n; ++slot) {
            std::fill_n(at(0, slot).base[base_gparam], program_.n_gparam * lanes_, T(0));
        }
    }
    // The gradients of per-sample leaves of the first n samples.
    void write_gradients(const TileGradients<T>& gradients, const int64_t* samples, int64_t n) {
        int64_t start = 0;
        for (size_t leaf = 0; leaf < program_.param_sizes.size(); ++leaf) {
            const int64_t size = program_.param_sizes[leaf];
            if (gradients.params[leaf] != nullptr) {
                get(frame_[0].base[base_gparam] + start * lanes_, n, size,
                    [&](int64_t lane) { return gradients.params[leaf] + samples[lane] * size; });
            }
            start += size;
        }
    }

    // Rows of `width` numbers to and from the first n samples.
    template <class F>
    void put(T* array, int64_t n, int64_t row_width, F&& row) const {
        if (lanes_ != 1) return put_lanes(array, lanes_, n, row_width, row);
        for (int64_t slot = 0; slot < n; ++slot) std::copy_n(row(slot), row_width, array + slot * slots_.stride);
    }
    template <class F>
    void get(const T* array, int64_t n, int64_t row_width, F&& row) const {
        if (lanes_ != 1) return get_lanes(array, lanes_, n, row_width, row);
        for (int64_t slot = 0; slot < n; ++slot) std::copy_n(array + slot * slots_.stride, row_width, row(slot));
    }
    // All samples' numbers of an array of n components.
    void clear(T* array, int64_t n) const {
        if (lanes_ != 1) return static_cast<void>(std::fill_n(array, n * lanes_, T(0)));
        for (int64_t slot = 0; slot < slots_.n; ++slot) std::fill_n(array + slot * slots_.stride, n, T(0));
    }

private:
    static constexpr int64_t kCache = 32 * 1024;  // bytes that the slots may fill

    const TileProgram& program_;
    Workspace& memory_;
    TileFrame<T>* frame_ = nullptr;
    const int stages_;
    const int64_t lanes_;
    RowSlots slots_{1, 0};
    T* next_ = nullptr;
    int64_t active_ = 1;
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
