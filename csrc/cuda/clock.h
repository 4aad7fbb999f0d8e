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
    double t, h, step, target, end, direction, shortest, previous, before;
    int64_t accepted, rejected, evals;
    Status status;

    FASTODE_HOST_DEVICE void start(const StepControl& control, double from, double to, bool finite) {
        t = from;
        end = to;
        direction = end > t ? 1.0 : end < t ? -1.0 : 0.0;
        shortest = shortest_step(control, t, end);
        previous = before = 1.0;
        accepted = rejected = 0;
        evals = 1;
        status = direction == 0.0 ? Status::success : finite ? Status::running : Status::non_finite;
    }

    FASTODE_HOST_DEVICE void set_size(const StepControl& control, double size) {
        const double longer = size < shortest ? shortest : size;
        h = control.max_step < longer ? control.max_step : longer;
    }

    // Size and end of the next attempt; next_output is where a step of infinite size leads.
    FASTODE_HOST_DEVICE void plan(const StepControl& control, double next_output) {
        const double to = h - h == 0.0 ? end : next_output;
        const double room = fabs(to - t);
        const bool last = h * (1 + control.last_stretch) >= room;
        step = direction * (last ? room : h);
        target = last ? to : t + step;
    }

    // Accepts or rejects the attempt by its error ratio, NaN if the new state, in T, is not finite. Leaves the time.
    template <class T>
    FASTODE_HOST_DEVICE bool judge(const StepControl& control, double ratio, bool adaptive, int stages) {
        evals += stages - 1;
        const bool known = ratio == ratio;
        const double tried = fabs(step);
        const bool accept = adaptive ? ratio <= 1.0 : known;
        if (!accept && (!adaptive || tried <= shortest)) {
            status = known ? Status::step_underflow : Status::non_finite;
        }
        if (adaptive) {
            const double factor = sizeof(T) == 4 ? step_factor_f32(control, ratio, previous, before, accept)
                                                 : step_factor(control, ratio, previous, before, accept);
            set_size(control, tried * factor);
            if (accept) {
                before = previous;
                previous = ratio;
            }
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
