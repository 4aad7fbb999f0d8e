// The clock of one sample in registers: what csrc/cpu/stepper.cpp does between evaluations, for host and device.
#pragma once

#include "core/step_control.h"

namespace fastode {

// step_factor for states in float32, in float32: its powers take a quarter of the time, and no step is held to more
// digits than the error ratio has.
FASTODE_HOST_DEVICE inline double step_factor_f32(const StepControl& c, double ratio, double previous, double before,
                                                  bool accepted) {
    if (!(ratio - ratio == 0.0)) return c.min_factor;  // infinite or NaN
    const auto power = [&c](double r, double exponent) {
        return powf(static_cast<float>(r < c.ratio_floor ? c.ratio_floor : r), static_cast<float>(-exponent));
    };
    float factor = static_cast<float>(c.safety) * power(ratio, accepted ? c.b1 : c.exponent);
    if (accepted && c.b2 != 0.0) factor *= power(previous, c.b2);
    if (accepted && c.b3 != 0.0) factor *= power(before, c.b3);
    const double high = accepted ? c.max_factor : 1.0, wide = factor;
    return wide < c.min_factor ? c.min_factor : wide > high ? high : wide;
}

struct Clock {
    double t, h, step, target, end, direction, previous, before;
    double fixed;  // size of fixed steps
    bool cut;      // whether the attempt was cut at the target
    int64_t accepted, rejected, evals;
    Status status;

    FASTODE_HOST_DEVICE void start(double from, double to, bool finite) {
        t = from;
        end = to;
        direction = end > t ? 1.0 : end < t ? -1.0 : 0.0;
        h = step = target = fixed = 0.0;
        cut = false;
        previous = before = 1.0;
        accepted = rejected = 0;
        evals = 1;
        status = direction == 0.0 ? Status::success : finite ? Status::running : Status::non_finite;
    }

    // Size and end of the next attempt; next_output is read if steps end at outputs.
    FASTODE_HOST_DEVICE void plan(const StepControl& control, double next_output) {
        const Attempt attempt = plan_attempt(control, t, h, direction, ends_at_output(control, h) ? next_output : end);
        step = attempt.step;
        target = attempt.t_next;
        cut = attempt.cut;
    }

    // Accepts or rejects the attempt by its error ratio, NaN if the new state, in T, is not finite. Leaves the time.
    template <class T>
    FASTODE_HOST_DEVICE bool judge(const StepControl& control, double ratio, bool adaptive, int stages) {
        evals += stages - 1;
        const bool known = ratio == ratio;
        const double tried = tried_size(step, h);
        const bool accept = step != 0.0 && (adaptive ? ratio <= 1.0 : known);
        if (!accept && (!adaptive || tried <= shortest_step(control, t))) {
            status = known ? Status::step_underflow : Status::non_finite;
        }
        if (adaptive) {
            const double factor = sizeof(T) == 4 ? step_factor_f32(control, ratio, previous, before, accept)
                                                 : step_factor(control, ratio, previous, before, accept);
            const bool kept = accept && cut;
            const double grown = tried * factor, size = kept && grown < h ? h : grown;
            h = bounded_step(control, size, accept ? target : t);
            if (accept && !kept) {
                before = previous;
                previous = ratio;
            }
        } else {
            h = fixed_step_after(fixed, h, step, cut);
        }
        ++(accept ? accepted : rejected);
        return accept;
    }

    // After the attempt: moves on if it was accepted, and sees whether that is all.
    FASTODE_HOST_DEVICE void advance(bool accept, int64_t max_steps) {
        if (accept) {
            t = target;
            if (t == end) status = Status::success;
        }
        if (status == Status::running && accepted + rejected >= max_steps) status = Status::max_steps;
    }
};

}  // namespace fastode
