#include "cpu/tile/forward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/interpolant.h"
#include "core/thread_pool.h"
#include "cpu/tile/workspace.h"

namespace fastode {
namespace {

constexpr double kThreadNs = 60000;  // work that is worth waking another thread: on a virtual machine that takes 50 us
constexpr double kUsualEvals = 40;   // of a sample in a solve, for that estimate
constexpr int64_t kGroupsPerThread = 4;
constexpr int kPrefetchParts = 12;

// One thread's tile and the samples of one group that go through it.
template <class T>
class ForwardTile {
public:
    ForwardTile(const TileProgram& program, const TileMethod& method, const StepControl& control,
                const TileSolve<T>& solve, T* shared, TileArena<T>* arena, Workspace& memory)
        : program_(program),
          method_(method),
          control_(control),
          solve_(solve),
          arena_(arena),
          stage_(stage_kernels(shared)),
          stepping_(stepping_kernels(shared)),
          dim_(program.dim),
          lanes_(program.lanes),
          padded_((program.lanes + 15) / 16 * 16),
          adaptive_(solve.step_size == nullptr) {
        const int64_t tile = dim_ * lanes_;
        y_ = memory.take<T>(tile);
        y1_ = memory.take<T>(tile);
        for (int i = 0; i < method.s; ++i) k_[i] = memory.take<T>(tile);
        step_of_ = memory.take<T>(padded_);
        taken_of_ = memory.take<T>(padded_);
        time_of_ = memory.take<T>(padded_);
        one_of_ = memory.take<T>(padded_);
        std::fill_n(one_of_, padded_, T(1));
        double** arrays[] = {&l_.t,           &l_.t_old,    &l_.h,        &l_.end,      &l_.direction,
                             &l_.shortest,    &l_.previous, &l_.before,   &l_.step,     &l_.t_next,
                             &l_.next_output, &l_.ratio,    &l_.accepted, &l_.rejected, &l_.alive,
                             &l_.outcome,     &l_.taken,    &d0_,         &d1_,         &d2_};
        double* all = memory.take<double>(padded_ * static_cast<int64_t>(std::size(arrays)));
        std::fill_n(all, padded_ * static_cast<int64_t>(std::size(arrays)), 0.0);
        for (double** array : arrays) {
            *array = all;
            all += padded_;
        }
        l_.events = memory.take<int32_t>(padded_);
        sample_ = memory.take<int64_t>(padded_);
        output_ = memory.take<int64_t>(padded_);
        std::fill_n(frame_.base, kTileBases, nullptr);
        frame_.base[base_time] = time_of_;
        frame_.base[base_tmp] = memory.take<T>(program.n_tmp * lanes_);
        frame_.base[base_shared] = shared;
        frame_.base[base_param] = memory.take<T>(program.n_param * lanes_);
        frame_.maps = program.maps.data();
        frame_.lanes = lanes_;
        rtol_ = memory.take<T>(dim_);
        atol_ = memory.take<T>(dim_);
        std::copy_n(solve.rtol, dim_, rtol_);
        std::copy_n(solve.atol, dim_, atol_);
        const double steps = static_cast<double>(solve.max_steps);
        bounds_ = {control.exponent,
                   control.b1,
                   control.b2,
                   control.b3,
                   control.safety,
                   control.min_factor,
                   control.max_factor,
                   control.max_step,
                   control.ratio_floor,
                   control.last_stretch,
                   steps,
                   adaptive_};
    }

    // Samples [begin, end) of the batch.
    void run(int64_t begin, int64_t end, Workspace& memory) {
        if (lanes_ == 1) {
            for (int64_t sample = begin; sample < end; ++sample) run_row(sample, end);
        } else {
            run_lanes(begin, end, memory);
        }
    }

private:
    void set_active(int64_t n) {
        frame_.active = n;
        terms_.width = dim_;
        terms_.lanes = lanes_;
        terms_.active = n;
    }

    // One sample by itself.
    void run_row(int64_t sample, int64_t end) {
        load(sample, 1);
        next_ = sample + 1 < end ? sample + 1 : -1;
        prefetched_ = 0;
        choose_first_steps(1);
        if (solve_.k1 != nullptr) std::copy_n(k_[0], dim_, solve_.k1 + sample * dim_);
        live_ = 0;
        begin_sample(0, sample, l_.h[0], !std::isnan(d1_[0]));
        while (live_ > 0) step();
    }

    // Lanes take one sample after another. The first steps are chosen tile by tile before; k1 and h0 hold what is found
    // for samples until a lane takes them.
    void run_lanes(int64_t begin, int64_t end, Workspace& memory) {
        begin_ = begin;
        const int64_t last = begin + (end - begin - 1) / lanes_ * lanes_;  // the first sample of the last tile
        k1_ = last > begin ? memory.take<T>((last - begin) * dim_) : nullptr;
        h0_ = last > begin ? memory.take<double>(last - begin) : nullptr;
        sound_ = last > begin ? memory.take<char>(last - begin) : nullptr;
        for (int64_t first = begin; first <= last; first += lanes_) {
            const int64_t n = std::min(lanes_, end - first);
            load(first, n);
            choose_first_steps(n);
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
        // The last tile goes first: it is there already.
        queue_ = begin;
        queue_end_ = last;
        std::fill_n(l_.alive, padded_, 0.0);
        live_ = 0;
        const int64_t n = end - last;
        set_active(whole_lanes(n, lanes_));
        for (int64_t lane = 0; lane < n; ++lane) {
            const bool sound = !std::isnan(d1_[lane]);
            if (!begin_sample(lane, last + lane, l_.h[lane], sound)) refill(lane);
        }
        while (live_ > 0) {
            shrink();
            step();
        }
    }

    void load(int64_t first, int64_t n) {
        set_active(whole_lanes(n, lanes_));
        for (int64_t lane = 0; lane < n; ++lane) {
            const double t = solve_.time(0, first + lane), stop = solve_.time(solve_.n_times - 1, first + lane);
            l_.t[lane] = t;
            l_.end[lane] = stop;
            l_.direction[lane] = stop > t ? 1.0 : stop < t ? -1.0 : 0.0;
            l_.h[lane] = 0.0;
            sample_[lane] = first + lane;
        }
        put_lanes(y_, lanes_, n, dim_, [&](int64_t lane) { return solve_.y0 + (first + lane) * dim_; });
        pack_params(program_, solve_.leaves, sample_, n, frame_.base[base_param], lanes_);
    }

    void evaluate(T* state, T* out) {
        frame_.base[base_in] = state;
        frame_.base[base_out] = out;
        run_code(program_.forward, frame_);
    }

    // The norm of sum of up to two terms against the tolerance at y; NaN if y or k is not finite.
    void initial_norm(const T* last, double* out) { stage_.norm(terms_, {y_, y_, last, rtol_, atol_, one_of_}, out); }

    // k1 and the size of the first step of n lanes; d1 is NaN where the start is not finite.
    void choose_first_steps(int64_t n) {
        for (int64_t lane = 0; lane < n; ++lane) time_of_[lane] = static_cast<T>(l_.t[lane]);
        evaluate(y_, k_[0]);
        const bool chosen = adaptive_ && solve_.first_step == 0.0;
        terms_.n = 0;
        if (chosen) add_term<T>(terms_, 1.0, k_[0]);
        initial_norm(k_[0], d1_);
        if (!chosen) {
            for (int64_t lane = 0; lane < n; ++lane) {
                const double fixed = adaptive_ ? solve_.first_step : solve_.step_size[sample_[lane]];
                l_.h[lane] = adaptive_ ? bounded(lane, fixed) : fixed;
            }
            return;
        }
        terms_.n = 0;
        add_term<T>(terms_, 1.0, y_);
        initial_norm(y_, d0_);
        for (int64_t lane = 0; lane < n; ++lane) {
            const double h0 = probe_step(d0_[lane], d1_[lane], std::abs(l_.end[lane] - l_.t[lane]));
            const double size = l_.direction[lane] * h0;
            l_.h[lane] = h0;
            step_of_[lane] = static_cast<T>(size);
            time_of_[lane] = static_cast<T>(l_.t[lane] + size);
        }
        terms_.n = 0;
        add_term<T>(terms_, 1.0, k_[0]);
        stage_.combine(terms_, y1_, y_, step_of_);
        evaluate(y1_, k_[1]);
        terms_.n = 0;
        add_term<T>(terms_, 1.0, k_[1]);
        add_term<T>(terms_, -1.0, k_[0]);
        initial_norm(y_, d2_);
        for (int64_t lane = 0; lane < n; ++lane) {
            const double h0 = l_.h[lane];
            l_.h[lane] = bounded(lane, first_step(h0, d1_[lane], d2_[lane] / h0, control_.exponent));
        }
    }

    double bounded(int64_t lane, double h) const {
        const double shortest = shortest_step(control_, l_.t[lane], l_.end[lane]);
        return std::min(std::max(h, shortest), control_.max_step);
    }

    // Starts the sample whose state, constants and k1 are in the lane. False if it has no step to take.
    bool begin_sample(int64_t lane, int64_t sample, double h, bool sound) {
        const double t = solve_.time(0, sample), stop = solve_.time(solve_.n_times - 1, sample);
        sample_[lane] = sample;
        l_.t[lane] = t;
        l_.end[lane] = stop;
        l_.direction[lane] = stop > t ? 1.0 : stop < t ? -1.0 : 0.0;
        l_.shortest[lane] = shortest_step(control_, t, stop);
        l_.previous[lane] = l_.before[lane] = 1.0;
        l_.accepted[lane] = l_.rejected[lane] = 0.0;
        l_.h[lane] = h;
        l_.alive[lane] = 0.0;
        int64_t e = 0;
        for (; e < solve_.n_times && solve_.time(e, sample) == t; ++e) {
            std::copy_n(solve_.y0 + sample * dim_, dim_, ys(e, sample));
        }
        output_[lane] = e;
        if (l_.direction[lane] == 0.0) {
            finish_sample(lane, Status::success);
        } else if (!sound) {
            finish_sample(lane, Status::non_finite);
        } else {
            l_.next_output[lane] = solve_.time(e, sample);
            l_.alive[lane] = 1.0;
            ++live_;
            return true;
        }
        return false;
    }

    // A part of the constants of the sample that comes next in rows.
    void prefetch() {
        if (next_ >= 0) prefetch_param(program_, solve_.leaves, next_, prefetched_, kPrefetchParts);
        ++prefetched_;
    }

    // The next sample of the queue that has steps to take.
    void refill(int64_t lane) {
        while (queue_ < queue_end_) {
            const int64_t sample = queue_++, at = sample - begin_;
            put_lane(y_, lanes_, lane, solve_.y0 + sample * dim_, dim_);
            put_lane(k_[0], lanes_, lane, k1_ + at * dim_, dim_);
            pack_param(program_, solve_.leaves, sample, frame_.base[base_param], lanes_, lane);
            if (begin_sample(lane, sample, h0_[at], sound_[at] != 0)) return;
        }
    }

    void finish_sample(int64_t lane, Status status) {
        const int64_t sample = sample_[lane];
        const auto accepted = static_cast<int64_t>(l_.accepted[lane]);
        const auto rejected = static_cast<int64_t>(l_.rejected[lane]);
        solve_.status[sample] = static_cast<int64_t>(status);
        solve_.n_accepted[sample] = accepted;
        solve_.n_rejected[sample] = rejected;
        solve_.n_evals[sample] =
            (adaptive_ && solve_.first_step == 0.0 ? 2 : 1) + (accepted + rejected) * (method_.s - 1);
        solve_.reached[sample] = l_.t[lane];
        for (int64_t e = output_[lane]; e < solve_.n_times; ++e) {
            std::fill_n(ys(e, sample), dim_, std::numeric_limits<T>::quiet_NaN());
        }
    }

    T* ys(int64_t e, int64_t sample) const { return solve_.ys + (e * solve_.batch + sample) * dim_; }

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
        for (double* array : {l_.t, l_.h, l_.end, l_.direction, l_.shortest, l_.previous, l_.before, l_.next_output,
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

    // One attempt of every lane.
    void step() {
        const int64_t active = frame_.active;
        const int s = method_.s;
        stepping_.begin(bounds_, l_, step_of_, active);
        for (int i = 1; i < s; ++i) {
            if (prefetched_ < kPrefetchParts) prefetch();
            terms_.n = 0;
            for (int j = 0; j < i; ++j) add_term<T>(terms_, method_.a_at(i, j), k_[j]);
            stage_.combine(terms_, y1_, y_, step_of_);
            stepping_.times(l_, method_.c[static_cast<size_t>(i)], time_of_, active);
            evaluate(y1_, k_[i]);
        }
        terms_.n = 0;
        if (adaptive_) {
            for (int j = 0; j < s; ++j) add_term<T>(terms_, method_.e[static_cast<size_t>(j)], k_[j]);
        }
        stage_.norm(terms_, {y_, y1_, k_[s - 1], rtol_, atol_, step_of_}, l_.ratio);
        const int flags = stepping_.finish(bounds_, l_, taken_of_, active);
        if (arena_ != nullptr && (flags & tile_step_acceptance) != 0) append();
        const int n_events = flags / tile_step_event;
        for (int i = 0; i < n_events; ++i) {
            if (l_.taken[l_.events[i]] != 0.0) write_outputs(l_.events[i]);
        }
        if ((flags & tile_step_rejection) == 0) {
            std::swap(y_, y1_);
            std::swap(k_[0], k_[s - 1]);
        } else if ((flags & tile_step_acceptance) != 0) {
            stage_.blend(y_, y1_, taken_of_, dim_, lanes_, active);
            stage_.blend(k_[0], k_[s - 1], taken_of_, dim_, lanes_, active);
        }
        for (int i = 0; i < n_events; ++i) {
            const int64_t lane = l_.events[i];
            if (l_.outcome[lane] == -1.0) continue;
            finish_sample(lane, static_cast<Status>(static_cast<int64_t>(l_.outcome[lane])));
            l_.alive[lane] = 0.0;
            --live_;
            refill(lane);
        }
    }

    void append() {
        for (int64_t lane = 0; lane < frame_.active; ++lane) {
            if (l_.taken[lane] == 0.0) continue;
            const auto number = static_cast<int64_t>(l_.accepted[lane]) - 1;
            T* state = arena_->append(sample_[lane], number, l_.t_old[lane], l_.t_next[lane], l_.step[lane]);
            if (state != nullptr) get_lane(state, y_, lanes_, lane, dim_);
        }
    }

    // The outputs inside and at the end of a lane's step.
    void write_outputs(int64_t lane) {
        const int64_t sample = sample_[lane];
        const double t_next = l_.t_next[lane], direction = l_.direction[lane];
        int64_t e = output_[lane];
        for (; e < solve_.n_times; ++e) {
            const double t = solve_.time(e, sample);
            if (direction * (t_next - t) < 0.0) break;
            if (t == t_next) {
                get_lane(ys(e, sample), y1_, lanes_, lane, dim_);
            } else {
                interpolate((t - l_.t_old[lane]) / l_.step[lane], lane, ys(e, sample));
            }
        }
        output_[lane] = e;
        l_.next_output[lane] = e < solve_.n_times ? solve_.time(e, sample) : l_.end[lane];
    }

    void interpolate(double theta, int64_t lane, T* out) {
        double phi[kMaxStages];
        bernstein_basis(theta, method_.degree, phi);
        T weights[kMaxStages];
        const T* x[kMaxStages];
        int n = 0;
        for (int j = 0; j < method_.s; ++j) {
            double weight = 0.0;
            for (int m = 0; m < method_.degree; ++m) weight += method_.q_at(j, m) * phi[m];
            if (weight == 0.0) continue;
            weights[n] = static_cast<T>(weight);
            x[n++] = k_[j] + lane;
        }
        const T h = step_of_[lane];
        for (int64_t i = 0; i < dim_; ++i) {
            const int64_t at = i * lanes_;
            T sum = T(0);
            for (int j = 0; j < n; ++j) sum += weights[j] * x[j][at];
            out[i] = y_[at + lane] + h * sum;
        }
    }

    const TileProgram& program_;
    const TileMethod& method_;
    const StepControl& control_;
    const TileSolve<T>& solve_;
    TileArena<T>* arena_;
    const TileStage<T>& stage_;
    const TileStepping<T>& stepping_;
    const int64_t dim_, lanes_, padded_;
    const bool adaptive_;
    TileControl bounds_;
    TileFrame<T> frame_;
    TileTerms<T> terms_;
    TileLanes l_;
    T *y_, *y1_, *step_of_, *taken_of_, *time_of_, *one_of_, *rtol_, *atol_;
    T* k_[kMaxStages];
    double *d0_, *d1_, *d2_;
    int64_t *sample_, *output_;  // of each lane: its sample and its next output
    T* k1_ = nullptr;
    double* h0_ = nullptr;
    char* sound_ = nullptr;
    int prefetched_ = kPrefetchParts;  // of the next sample's constants
    int64_t next_ = -1, begin_ = 0, queue_ = 0, queue_end_ = 0, live_ = 0;
};

}  // namespace

int threads_for(double ns, int threads) {
    return static_cast<int>(std::clamp<double>(ns / kThreadNs, 1.0, std::max(1, threads)));
}

template <class T>
void tile_solve(const TileProgram& program, const TileMethod& method, const StepControl& control,
                const TileSolve<T>& solve, TileRecord<T>* record) {
    if (solve.batch == 0) return;
    Workspace& memory = Workspace::of_this_thread();
    const Workspace::Scope scope(memory);
    T* shared = memory.take<T>(program.n_shared);
    pack_shared(program, solve.leaves, shared);
    const double ns =
        kUsualEvals * (estimated_ns(program.forward, program.lanes) + 2.0 * static_cast<double>(program.dim));
    const int threads = threads_for(ns * static_cast<double>(solve.batch), solve.threads);
    // Groups decide who works on what, never a result.
    const int64_t tiles = (solve.batch + program.lanes - 1) / program.lanes;
    const int64_t wanted = threads == 1 ? 1 : std::min<int64_t>(tiles, threads * kGroupsPerThread);
    const int64_t step = program.lanes == 1 ? 1 : 16;
    const int64_t size = ((solve.batch + wanted - 1) / wanted + step - 1) / step * step;
    parallel_chunks((solve.batch + size - 1) / size, threads, [&](int64_t group, int slot) {
        Workspace& own = Workspace::of_this_thread();
        const Workspace::Scope inner(own);
        TileArena<T>* arena = record == nullptr ? nullptr : &record->arena(slot);
        ForwardTile<T> tile(program, method, control, solve, shared, arena, own);
        tile.run(group * size, std::min(solve.batch, (group + 1) * size), own);
    });
    if (record != nullptr) record->finish(solve.n_accepted);
}

template void tile_solve(const TileProgram&, const TileMethod&, const StepControl&, const TileSolve<float>&,
                         TileRecord<float>*);
template void tile_solve(const TileProgram&, const TileMethod&, const StepControl&, const TileSolve<double>&,
                         TileRecord<double>*);

}  // namespace fastode
