// A forward solve with SIMD across samples: arrays are [component][lane].
#pragma once

#include "cpu/tile/forward_tile.h"

namespace fastode {

// One thread's tile and the samples of one group that go through it.
template <class T>
class LanesTile : public ForwardTile<T, LanesTile<T>> {
    using Base = ForwardTile<T, LanesTile<T>>;
    friend Base;

public:
    LanesTile(const TileProgram& program, const TileMethod& method, const StepControl& control,
              const TileSolve<T>& solve, T* shared, TileArena<T>* arena, Workspace& memory)
        : Base(program, method, control, solve, arena, program.lanes, 1, program.lanes, memory), lanes_(program.lanes) {
        const int64_t tile = dim_ * lanes_;
        y_ = memory.take<T>(tile);
        y1_ = memory.take<T>(tile);
        for (int i = 0; i < method.s; ++i) k_[i] = memory.take<T>(tile);
        first_ = memory.take<int32_t>(lanes_);
        for (int64_t lane = 0; lane < lanes_; ++lane) first_[lane] = static_cast<int32_t>(lane);
        std::fill_n(frame_.base, kTileBases, nullptr);
        frame_.base[base_time] = time_of_;
        frame_.base[base_tmp] = memory.take<T>(program.n_tmp * lanes_);
        frame_.base[base_shared] = shared;
        frame_.base[base_param] = memory.take<T>(program.n_param * lanes_);
        frame_.maps = program.maps.data();
        frame_.lanes = lanes_;
    }

    // Samples [begin, end) of the batch. Lanes take one sample after another. The first steps are chosen tile by tile
    // before; k1 and h0 hold what is found for samples until a lane takes them.
    void run(int64_t begin, int64_t end, Workspace& memory) {
        begin_ = begin;
        const int64_t last = std::max(begin, end - lanes_);  // the first sample of the last tile, which is a whole one
        k1_ = last > begin ? memory.take<T>((last - begin) * dim_) : nullptr;
        h0_ = last > begin ? memory.take<double>(last - begin) : nullptr;
        sound_ = last > begin ? memory.take<char>(last - begin) : nullptr;
        for (int64_t first = begin, n = 0; first < end; first += n) {
            n = first == last ? end - last : std::min(lanes_, last - first);
            load(first, n);
            Base::choose_first_steps(first_, n);
            if (solve_.k1 != nullptr) {
                get_lanes(k_[0], lanes_, n, dim_, [&](int64_t lane) { return solve_.k1 + (first + lane) * dim_; });
            }
            if (first == last) break;
            get_lanes(k_[0], lanes_, n, dim_, [&](int64_t lane) { return k1_ + (first + lane - begin) * dim_; });
            for (int64_t lane = 0; lane < n; ++lane) {
                const int64_t at = first + lane - begin;
                h0_[at] = l_.h[lane];
                sound_[at] = !std::isnan(d1_[lane]);
            }
        }
        // The last tile goes first: it is there already. As many lanes as it has are in use until samples run out.
        queue_ = begin;
        queue_end_ = last;
        std::fill_n(l_.alive, padded_, 0.0);
        live_ = 0;
        const int64_t n = end - last;
        set_active(whole_lanes(n, lanes_));
        int64_t n_free = 0;
        for (int64_t lane = 0; lane < n; ++lane) {
            const bool sound = !std::isnan(d1_[lane]);
            if (!Base::begin_sample(lane, last + lane, l_.h[lane], sound)) free_[n_free++] = static_cast<int32_t>(lane);
        }
        refill(n_free);
        while (live_ > 0) {
            shrink();
            Base::step(frame_.active);
        }
    }

private:
    void set_active(int64_t n) { frame_.active = terms_.active = n; }

    void load(int64_t first, int64_t n) {
        set_active(whole_lanes(n, lanes_));
        for (int64_t lane = 0; lane < n; ++lane) Base::load_times(lane, first + lane);
        put_lanes(y_, lanes_, n, dim_, [&](int64_t lane) { return solve_.y0 + (first + lane) * dim_; });
        pack_params(program_, solve_.leaves, sample_, n, frame_.base[base_param], lanes_);
    }

    void before_stage() {}

    void evaluate(T* state, T* out) {
        frame_.base[base_in] = state;
        frame_.base[base_out] = out;
        run_code(program_.forward, frame_);
    }

    // Of the lanes whose step was accepted, the new array.
    void take(T* out, const T* fresh) { stage_.blend(out, fresh, taken_of_, dim_, lanes_, frame_.active); }

    // Gives n free lanes the next samples of the queue that have steps to take.
    void refill(int64_t n) {
        while (n > 0 && queue_ < queue_end_) {
            n = std::min(n, queue_end_ - queue_);
            const int64_t first = queue_, at = first - begin_;
            queue_ += n;
            const T* rows[kMostLanes];
            for (int64_t i = 0; i < n; ++i) rows[i] = solve_.y0 + (first + i) * dim_;
            put_scattered(y_, lanes_, free_, rows, 1, dim_, n);
            for (int64_t i = 0; i < n; ++i) rows[i] = k1_ + (at + i) * dim_;
            put_scattered(k_[0], lanes_, free_, rows, 1, dim_, n);
            pack_scattered(program_, solve_.leaves, first, n, free_, frame_.base[base_param], lanes_);
            int64_t idle = 0;
            for (int64_t i = 0; i < n; ++i) {
                if (!Base::begin_sample(free_[i], first + i, h0_[at + i], sound_[at + i] != 0)) {
                    free_[idle++] = free_[i];
                }
            }
            n = idle;
        }
    }

    // Moves live lanes to the front where that saves work.
    void shrink() {
        if (whole_lanes(live_, lanes_) >= frame_.active) return;
        int64_t to = 0;
        for (int64_t from = 0; from < frame_.active; ++from) {
            if (l_.alive[from] == 0.0) continue;
            if (to != from) move(to, from);
            ++to;
        }
        for (int64_t lane = to; lane < frame_.active; ++lane) l_.alive[lane] = 0.0;
        set_active(whole_lanes(live_, lanes_));
    }

    void move(int64_t to, int64_t from) {
        for (double* array : {l_.t, l_.h, l_.end, l_.direction, l_.previous, l_.before, l_.fixed, l_.next_output,
                              l_.accepted, l_.rejected, l_.alive}) {
            array[to] = array[from];
        }
        sample_[to] = sample_[from];
        output_[to] = output_[from];
        const auto column = [this, to, from](T* tile, int64_t n) {
            for (int64_t i = 0; i < n; ++i) tile[i * lanes_ + to] = tile[i * lanes_ + from];
        };
        column(y_, dim_);
        column(k_[0], dim_);
        column(frame_.base[base_param], program_.n_param);
    }

    using Base::d1_;
    using Base::dim_;
    using Base::free_;
    using Base::k_;
    using Base::l_;
    using Base::live_;
    using Base::output_;
    using Base::padded_;
    using Base::program_;
    using Base::sample_;
    using Base::solve_;
    using Base::stage_;
    using Base::taken_of_;
    using Base::terms_;
    using Base::time_of_;
    using Base::y1_;
    using Base::y_;

    const int64_t lanes_;
    TileFrame<T> frame_;
    int32_t* first_;  // 0, 1, 2, ...
    T* k1_ = nullptr;
    double* h0_ = nullptr;
    char* sound_ = nullptr;
    int64_t begin_ = 0, queue_ = 0, queue_end_ = 0;
};

}  // namespace fastode
