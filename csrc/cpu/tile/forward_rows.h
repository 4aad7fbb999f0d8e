// A forward solve with SIMD across components, of several samples at once.
#pragma once

#include "cpu/tile/forward_tile.h"
#include "cpu/tile/row_slots.h"

namespace fastode {

template <class T>
class RowsTile : public ForwardTile<T, RowsTile<T>> {
    using Base = ForwardTile<T, RowsTile<T>>;
    friend Base;

public:
    RowsTile(const TileProgram& program, const TileMethod& method, const StepControl& control,
             const TileSolve<T>& solve, T* shared, TileArena<T>* arena, Workspace& memory)
        : RowsTile(program, method, control, solve, shared, arena, memory,
                   RowSlots::of<T>(used_by(program, method), kCache)) {}

    // Samples [begin, end) of the batch.
    void run(int64_t begin, int64_t end, Workspace&) {
        next_ = begin;
        end_ = end;
        n_slots_ = std::min(slots_.n, end - begin);
        std::fill_n(l_.alive, padded_, 0.0);
        live_ = 0;
        for (int64_t i = 0; i < n_slots_; ++i) free_[i] = static_cast<int32_t>(i);
        refill(n_slots_);
        while (live_ > 0) Base::step(n_slots_);
    }

private:
    static constexpr int kPrefetchParts = 12;

    static constexpr int64_t kCache = 24 * 1024;  // bytes that the slots may fill

    static int64_t used_by(const TileProgram& program, const TileMethod& method) {
        return (method.s + 2) * whole_lines<T>(program.dim) + whole_lines<T>(program.n_tmp) +
               whole_lines<T>(program.n_param);
    }

    RowsTile(const TileProgram& program, const TileMethod& method, const StepControl& control,
             const TileSolve<T>& solve, T* shared, TileArena<T>* arena, Workspace& memory, RowSlots slots)
        : Base(program, method, control, solve, arena, slots.n, slots.stride, 1, memory), slots_(slots) {
        T* at = memory.take<T>(slots.n * slots.stride);
        std::fill_n(at, slots.n * slots.stride, T(0));  // what is computed beyond the ends of arrays stays harmless
        const auto next = [&at](int64_t n) {
            T* result = at;
            at += whole_lines<T>(n);
            return result;
        };
        y_ = next(dim_);
        y1_ = next(dim_);
        for (int i = 0; i < method.s; ++i) k_[i] = next(dim_);
        T *tmp = next(program.n_tmp), *param = next(program.n_param);
        for (int64_t i = 0; i < slots.n; ++i) {
            TileFrame<T>& f = frame_[i];
            std::fill_n(f.base, kTileBases, nullptr);
            f.base[base_time] = time_of_ + i;
            f.base[base_tmp] = tmp + i * slots.stride;
            f.base[base_param] = param + i * slots.stride;
            f.base[base_shared] = shared;
            f.maps = program.maps.data();
            f.lanes = f.active = 1;
        }
        terms_.active = 1;
    }

    // The slots that the next kernels work on.
    void set_slots(const int32_t* slots, int64_t n) {
        terms_.slots = {slots, n, slots_.stride};
        for (int64_t i = 0; i < n; ++i) {
            used_[i] = &frame_[slots[i]];
            shift_[i] = slots[i] * slots_.stride;
        }
    }

    void evaluate(T* state, T* out) {
        const int64_t n = terms_.slots.n;
        for (int64_t i = 0; i < n; ++i) {
            used_[i]->base[base_in] = state + shift_[i];
            used_[i]->base[base_out] = out + shift_[i];
        }
        run_code(program_.forward, used_, n);
    }

    // A part of the constants of the sample that comes next.
    void before_stage() {
        if (prefetched_ >= kPrefetchParts || next_ >= end_) return;
        prefetch_param(program_, solve_.leaves, next_, prefetched_++, kPrefetchParts);
    }

    // Of the slots whose step was accepted, the new array.
    void take(T* out, const T* fresh) const {
        for (int64_t i = 0; i < terms_.slots.n; ++i) {
            if (l_.taken[terms_.slots.at[i]] != 0.0) std::copy_n(fresh + shift_[i], dim_, out + shift_[i]);
        }
    }

    // Gives n free slots the next samples that have steps to take.
    void refill(int64_t n) {
        while (n > 0 && next_ < end_) {
            n = std::min(n, end_ - next_);
            for (int64_t i = 0; i < n; ++i) load(free_[i], next_++);
            set_slots(free_, n);
            Base::choose_first_steps(free_, n);
            int64_t idle = 0;
            for (int64_t i = 0; i < n; ++i) {
                const int32_t slot = free_[i];
                const int64_t sample = sample_[slot];
                if (solve_.k1 != nullptr) Base::get_lane(solve_.k1 + sample * dim_, k_[0], slot);
                if (!Base::begin_sample(slot, sample, l_.h[slot], !std::isnan(d1_[slot]))) free_[idle++] = slot;
            }
            n = idle;
            prefetched_ = 0;
        }
        int64_t at_work = 0;
        for (int64_t slot = 0; slot < n_slots_; ++slot) {
            if (l_.alive[slot] != 0.0) at_work_[at_work++] = static_cast<int32_t>(slot);
        }
        set_slots(at_work_, at_work);
    }

    void load(int64_t slot, int64_t sample) {
        Base::load_times(slot, sample);
        std::copy_n(solve_.y0 + sample * dim_, dim_, y_ + slot * slots_.stride);
        pack_param(program_, solve_.leaves, sample, frame_[slot].base[base_param]);
    }

    using Base::d1_;
    using Base::dim_;
    using Base::free_;
    using Base::k_;
    using Base::l_;
    using Base::live_;
    using Base::padded_;
    using Base::program_;
    using Base::sample_;
    using Base::solve_;
    using Base::terms_;
    using Base::time_of_;
    using Base::y1_;
    using Base::y_;

    const RowSlots slots_;
    TileFrame<T> frame_[kMostSlots];
    TileFrame<T>* used_[kMostSlots];  // of the slots at work
    int64_t shift_[kMostSlots];
    int32_t at_work_[kMostSlots];
    int64_t n_slots_ = 0, next_ = 0, end_ = 0;
    int prefetched_ = 0;  // parts of the next sample's constants
};

}  // namespace fastode
