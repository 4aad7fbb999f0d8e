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
    double min_ulps;      // no step is shorter than this many units of rounding of the time
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

// Shortest admissible step of a solve between two times.
FASTODE_HOST_DEVICE inline double shortest_step(const StepControl& c, double start, double end) {
    const double a = fabs(start), b = fabs(end);
    const double ulps = c.min_ulps * 2.220446049250313e-16 * (a > b ? a : b);
    return ulps > c.min_step ? ulps : c.min_step;
}

// First step by Hairer, Norsett, Wanner I, II.4: the size h0 of the probing Euler step from d0 = |y0|, d1 = |f0| ...
FASTODE_HOST_DEVICE inline double probe_step(double d0, double d1, double span) {
    double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    if (!(h0 - h0 == 0.0)) h0 = 1e-6;
    return h0 < span ? h0 : span;
}

// ... and the first step from d2 = |f1 - f0| / h0.
FASTODE_HOST_DEVICE inline double first_step(double h0, double d1, double d2, double exponent) {
    // A NaN in d2 must come through, as it does in the specification: then the probing step's size is kept.
    const double steepest = d1 > d2 ? d1 : d2;
    const double h1 = d1 != d1 || d2 != d2 ? NAN
                      : steepest <= 1e-15  ? fmax(1e-6, h0 * 1e-3)
                                           : pow(0.01 / steepest, exponent);
    if (!(h1 - h1 == 0.0)) return h0;
    return 100 * h0 < h1 ? 100 * h0 : h1;
}

}  // namespace fastode
