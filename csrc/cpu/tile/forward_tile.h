// What the two drivers of a forward solve share: the lanes' control, first steps, the attempt of a step, outputs.
//
// A lane is a sample under way. Its arrays lie side by side with those of other lanes (cpu/tile/forward_lanes.h), or
// each sample has a piece of memory of its own (cpu/tile/forward_rows.h); component i of lane l is at
// l * lane_step + i * component_step of the array's pointer.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/interpolant.h"
#include "core/interrupt.h"
#include "cpu/tile/forward.h"
#include "cpu/tile/workspace.h"

namespace fastode {

template <class T, class Driver>
class ForwardTile {
protected:
    ForwardTile(const TileProgram& program, const TileMethod& method, const StepControl& control,
                const TileSolve<T>& solve, TileArena<T>* arena, int64_t n_lanes, int64_t lane_step,
                int64_t component_step, Workspace& memory)
        : program_(program),
          method_(method),
          control_(control),
          solve_(solve),
          arena_(arena),
          stage_(stage_kernels(solve.y0)),
          stepping_(stepping_kernels(solve.y0)),
          dim_(program.dim),
          lane_step_(lane_step),
          component_step_(component_step),
          padded_((n_lanes + 15) / 16 * 16),
          adaptive_(solve.step_size == nullptr),
          timed_(reads_time(program.forward)),
          looks_(estimated_ns(program.forward, program.lanes) * static_cast<double>(method.s * n_lanes)) {
        step_of_ = memory.take<T>(padded_);
        taken_of_ = memory.take<T>(padded_);
        time_of_ = memory.take<T>(padded_);
        one_of_ = memory.take<T>(padded_);
        std::fill_n(time_of_, padded_, T(0));
        std::fill_n(one_of_, padded_, T(1));
        double** arrays[] = {&l_.t,      &l_.t_old,    &l_.h,        &l_.end,    &l_.direction, &l_.previous,
                             &l_.before, &l_.fixed,    &l_.step,     &l_.t_next, &l_.cut,       &l_.next_output,
                             &l_.ratio,  &l_.accepted, &l_.rejected, &l_.alive,  &l_.outcome,   &l_.taken,
                             &d0_,       &d1_,         &d2_};
        double* all = memory.take<double>(padded_ * static_cast<int64_t>(std::size(arrays)));
        std::fill_n(all, padded_ * static_cast<int64_t>(std::size(arrays)), 0.0);
        for (double** array : arrays) {
            *array = all;
            all += padded_;
        }
        l_.events = memory.take<int32_t>(padded_);
        free_ = memory.take<int32_t>(padded_);
        sample_ = memory.take<int64_t>(padded_);
        output_ = memory.take<int64_t>(padded_);
        rtol_ = memory.take<T>(dim_);
        atol_ = memory.take<T>(dim_);
        std::copy_n(solve.rtol, dim_, rtol_);
        std::copy_n(solve.atol, dim_, atol_);
        terms_.width = dim_;
        terms_.lanes = component_step;
        bounds_ = {control.exponent,
                   control.b1,
                   control.b2,
                   control.b3,
                   control.safety,
                   control.min_factor,
                   control.max_factor,
                   control.ratio_floor,
                   control.last_stretch,
                   static_cast<double>(solve.max_steps),
                   control.min_ulps * std::numeric_limits<double>::epsilon(),
                   control.min_step,
                   control.max_step,
                   adaptive_,
                   control.to_outputs != 0.0};
    }

    Driver& driver() { return *static_cast<Driver*>(this); }

    // The times of a sample that a lane is about to work on.
    void load_times(int64_t lane, int64_t sample) {
        const double t = solve_.time(0, sample), stop = solve_.time(solve_.n_times - 1, sample);
        l_.t[lane] = t;
        l_.end[lane] = stop;
        l_.direction[lane] = stop > t ? 1.0 : stop < t ? -1.0 : 0.0;
        l_.h[lane] = 0.0;
        sample_[lane] = sample;
    }

    // The norm of the sum of terms against the tolerance at y; NaN if y or last is not finite.
    void initial_norm(const T* last, double* out) { stage_.norm(terms_, {y_, y_, last, rtol_, atol_, one_of_}, out); }

    // k1 and the size of the first step of n lanes; d1 is NaN where the start is not finite.
    void choose_first_steps(const int32_t* lanes, int64_t n) {
        looks_.tick();
        for (int64_t i = 0; i < n; ++i) time_of_[lanes[i]] = static_cast<T>(l_.t[lanes[i]]);
        driver().evaluate(y_, k_[0]);
        const bool chosen = adaptive_ && solve_.first_step == 0.0;
        terms_.n = 0;
        if (chosen) add_term<T>(terms_, 1.0, k_[0]);
        initial_norm(k_[0], d1_);
        if (!chosen) {
            for (int64_t i = 0; i < n; ++i) {
                const int32_t lane = lanes[i];
                const double fixed = adaptive_ ? solve_.first_step : solve_.step_size[sample_[lane]];
                l_.h[lane] = adaptive_ ? bounded_step(control_, fixed, l_.t[lane]) : fixed;
            }
            return;
        }
        terms_.n = 0;
        add_term<T>(terms_, 1.0, y_);
        initial_norm(y_, d0_);
        for (int64_t i = 0; i < n; ++i) {
            const int32_t lane = lanes[i];
            const double h0 = probe_step(d0_[lane], d1_[lane], std::abs(l_.end[lane] - l_.t[lane]));
            const double size = l_.direction[lane] * h0;
            l_.h[lane] = h0;
            step_of_[lane] = static_cast<T>(size);
            time_of_[lane] = static_cast<T>(l_.t[lane] + size);
        }
        terms_.n = 0;
        add_term<T>(terms_, 1.0, k_[0]);
        stage_.combine(terms_, y1_, y_, step_of_);
        driver().evaluate(y1_, k_[1]);
        terms_.n = 0;
        add_term<T>(terms_, 1.0, k_[1]);
        add_term<T>(terms_, -1.0, k_[0]);
        initial_norm(y_, d2_);
        for (int64_t i = 0; i < n; ++i) {
            const int32_t lane = lanes[i];
            const double h0 = l_.h[lane];
            const double h = first_step(h0, d1_[lane], d2_[lane] / h0, control_.exponent);
            l_.h[lane] = bounded_step(control_, h, l_.t[lane]);
        }
    }

    // Starts the sample whose state, constants and k1 are in the lane. False if it has no step to take.
    bool begin_sample(int64_t lane, int64_t sample, double h, bool sound) {
        load_times(lane, sample);
        const double t = l_.t[lane];
        l_.fixed[lane] = adaptive_ ? 0.0 : solve_.step_size[sample];
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
        constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
        const bool tried = accepted + rejected > 0;
        solve_.last_step[sample] = tried ? l_.step[lane] : kUnknown;
        solve_.last_ratio[sample] = tried && adaptive_ ? l_.ratio[lane] : kUnknown;
        for (int64_t e = output_[lane]; e < solve_.n_times; ++e) {
            std::fill_n(ys(e, sample), dim_, std::numeric_limits<T>::quiet_NaN());
        }
    }

    T* ys(int64_t e, int64_t sample) const { return solve_.ys + (e * solve_.batch + sample) * dim_; }

    // One attempt of every lane; lanes beyond `active` are not looked at.
    void step(int64_t active) {
        looks_.tick();
        const int s = method_.s;
        stepping_.begin(bounds_, l_, step_of_, active);
        for (int i = 1; i < s; ++i) {
            driver().before_stage();
            terms_.n = 0;
            for (int j = 0; j < i; ++j) add_term<T>(terms_, method_.a_at(i, j), k_[j]);
            stage_.combine(terms_, y1_, y_, step_of_);
            if (timed_) stepping_.times(l_, method_.c[static_cast<size_t>(i)], time_of_, active);
            driver().evaluate(y1_, k_[i]);
        }
        terms_.n = 0;
        if (adaptive_) {
            for (int j = 0; j < s; ++j) add_term<T>(terms_, method_.e[static_cast<size_t>(j)], k_[j]);
        }
        stage_.norm(terms_, {y_, y1_, k_[s - 1], rtol_, atol_, step_of_}, l_.ratio);
        const int flags = stepping_.finish(bounds_, l_, taken_of_, active);
        if (arena_ != nullptr && (flags & tile_step_acceptance) != 0) append(active);
        const int n_events = flags / tile_step_event;
        for (int i = 0; i < n_events; ++i) {
            if (l_.taken[l_.events[i]] != 0.0) write_outputs(l_.events[i]);
        }
        if ((flags & tile_step_rejection) == 0) {
            std::swap(y_, y1_);
            std::swap(k_[0], k_[s - 1]);
        } else if ((flags & tile_step_acceptance) != 0) {
            driver().take(y_, y1_);
            driver().take(k_[0], k_[s - 1]);
        }
        int64_t n_free = 0;
        for (int i = 0; i < n_events; ++i) {
            const int32_t lane = l_.events[i];
            if (l_.outcome[lane] == -1.0) continue;
            finish_sample(lane, static_cast<Status>(static_cast<int64_t>(l_.outcome[lane])));
            l_.alive[lane] = 0.0;
            --live_;
            free_[n_free++] = lane;
        }
        if (n_free > 0) driver().refill(n_free);
    }

    void append(int64_t active) {
        for (int64_t lane = 0; lane < active; ++lane) {
            if (l_.taken[lane] == 0.0) continue;
            const auto number = static_cast<int64_t>(l_.accepted[lane]) - 1;
            T* state = arena_->append(sample_[lane], number, l_.t_old[lane], l_.t_next[lane], l_.step[lane]);
            if (state != nullptr) get_lane(state, y_, lane);
        }
    }

    void get_lane(T* row, const T* tile, int64_t lane) const {
        const T* from = tile + lane * lane_step_;
        if (component_step_ == 1) {
            std::copy_n(from, dim_, row);
        } else {
            for (int64_t i = 0; i < dim_; ++i) row[i] = from[i * component_step_];
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
                get_lane(ys(e, sample), y1_, lane);
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
            x[n++] = k_[j] + lane * lane_step_;
        }
        const T h = step_of_[lane];
        const T* y = y_ + lane * lane_step_;
        for (int64_t i = 0; i < dim_; ++i) {
            const int64_t at = i * component_step_;
            T sum = T(0);
            for (int j = 0; j < n; ++j) sum += weights[j] * x[j][at];
            out[i] = y[at] + h * sum;
        }
    }

    const TileProgram& program_;
    const TileMethod& method_;
    const StepControl& control_;
    const TileSolve<T>& solve_;
    TileArena<T>* arena_;
    const TileStage<T>& stage_;
    const TileStepping<T>& stepping_;
    const int64_t dim_, lane_step_, component_step_, padded_;
    const bool adaptive_, timed_;
    Looks looks_;
    TileControl bounds_;
    TileTerms<T> terms_;
    TileLanes l_;
    T *y_ = nullptr, *y1_ = nullptr;  // the drivers place these and the stages
    T* k_[kMaxStages];
    T *step_of_, *taken_of_, *time_of_, *one_of_, *rtol_, *atol_;
    double *d0_, *d1_, *d2_;
    int32_t* free_;              // lanes whose sample is done
    int64_t *sample_, *output_;  // of each lane: its sample and its next output
    int64_t live_ = 0;
};

}  // namespace fastode
