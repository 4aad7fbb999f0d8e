// Step-size control of one sample: the arithmetic of fastode/controllers.py, for host and device.
//
// Every constant comes from Python, where it is defined and explained.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FASTODE_HOST_DEVICE __host__ __device__
#else
#define FASTODE_HOST_DEVICE
#endif

namespace fastode {

// The integers of fastode.Status, and one that users never see.
enum class Status : int64_t { running = -1, success = 0, max_steps = 1, step_underflow = 2, non_finite = 3 };

struct StepControl {
    double exponent;    // 1/k of the error estimate
    double b1, b2, b3;  // powers of the error ratios of this step, the one before and the one before that
    double safety, min_factor, max_factor;
    double min_step, max_step;
    double ratio_floor;   // smaller ratios count as this
    double last_stretch;  // a step leaving less than this part of itself is stretched to the end
    double min_ulps;      // no adaptive step is shorter than this many units of rounding of the time
    double to_outputs;    // not zero: steps end at every output time
};

// Ratio of the next step size to this one.
FASTODE_HOST_DEVICE inline double step_factor(const StepControl& c, double ratio, double previous, double before,
                                              bool accepted) {
    if (!(ratio - ratio == 0.0)) return c.min_factor;  // infinite or NaN
    const double r0 = ratio < c.ratio_floor ? c.ratio_floor : ratio;
    double factor;
    double high;
    if (accepted) {
        factor = c.safety * pow(r0, -c.b1);
        if (c.b2 != 0.0) factor *= pow(previous < c.ratio_floor ? c.ratio_floor : previous, -c.b2);
        if (c.b3 != 0.0) factor *= pow(before < c.ratio_floor ? c.ratio_floor : before, -c.b3);
        high = c.max_factor;
    } else {
        factor = c.safety * pow(r0, -c.exponent);
        high = 1.0;
    }
    return factor < c.min_factor ? c.min_factor : factor > high ? high : factor;
}

template <class T>
FASTODE_HOST_DEVICE inline T smallest_normal() {
    return sizeof(T) == 4 ? static_cast<T>(1.17549435e-38F) : static_cast<T>(2.2250738585072014e-308);
}

// Least size of an adaptive step from a time.
FASTODE_HOST_DEVICE inline double shortest_step(const StepControl& c, double t) {
    const double ulps = c.min_ulps * 2.220446049250313e-16 * fabs(t);
    return ulps > c.min_step ? ulps : c.min_step;
}

// A size within its bounds, for a step from a time.
FASTODE_HOST_DEVICE inline double bounded_step(const StepControl& c, double size, double t) {
    const double shortest = shortest_step(c, t);
    const double longer = size < shortest ? shortest : size;
    return c.max_step < longer ? c.max_step : longer;
}

// An attempt from t: where it leads, its signed size, and whether it was cut at a time that it must not pass. The size
// is the difference of the two times, so that the state goes as far as the clock; 0 if that does not move.
struct Attempt {
    double step, t_next;
    bool cut;
};

FASTODE_HOST_DEVICE inline Attempt plan_attempt(const StepControl& c, double t, double h, double direction,
                                                double target) {
    const bool cut = h * (1 + c.last_stretch) >= fabs(target - t);
    const double t_next = cut ? target : t + direction * h;
    return {t_next - t, t_next, cut};
}

// Whether steps of size h end at the next output, and not only at the end.
FASTODE_HOST_DEVICE inline bool ends_at_output(const StepControl& c, double h) {
    return c.to_outputs != 0.0 || h - h != 0.0;
}

// The part of h that an attempt used: what rounding the clock added to it does not count.
FASTODE_HOST_DEVICE inline double tried_size(double step, double h) { return fabs(step) < h ? fabs(step) : h; }

// Size of the fixed step after one of size h: what rounding the clock took from it, or added, is made up for.
FASTODE_HOST_DEVICE inline double fixed_step_after(double fixed, double h, double step, bool cut) {
    return cut ? fixed : fixed + (h - fabs(step));
}

// First step by Hairer, Norsett, Wanner I, II.4: the size h0 of the probing Euler step from d0 = |y0|, d1 = |f0| ...
FASTODE_HOST_DEVICE inline double probe_step(double d0, double d1, double span) {
    double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    if (!(h0 - h0 == 0.0 && h0 > 0.0)) h0 = 1e-6;
    return h0 < span ? h0 : span;
}

// ... and the first step from d2 = |f1 - f0| / h0.
FASTODE_HOST_DEVICE inline double first_step(double h0, double d1, double d2, double exponent) {
    // A NaN in d2 must come through, as it does in the specification: then the probing step's size is kept.
    const double steepest = d1 > d2 ? d1 : d2;
    const double h1 = d1 != d1 || d2 != d2 ? NAN
                      : steepest <= 1e-15  ? fmax(1e-6, h0 * 1e-3)
                                           : pow(0.01 / steepest, exponent);
    if (!(h1 - h1 == 0.0 && h1 > 0.0)) return h0;
    return 100 * h0 < h1 ? 100 * h0 : h1;
}

}  // namespace fastode
