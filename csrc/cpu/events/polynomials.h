// The polynomials of the steps of a window, in powers of the place in a step and in float64: fastode/events/steps.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/events/brackets.h"
#include "cpu/events/window.h"

namespace fastode {

// Width at which times are the same, and at which a root counts as found, in roundings of the clock.
constexpr double kEventRoundings = 4, kEventClock = std::numeric_limits<double>::epsilon();

template <class T>
class Polynomials {
public:
    Polynomials(const EventSteps<T>& steps, EventPoints<T>& points) : s_(steps), points_(points) {
        // Coefficients of 1, theta, ... in float64, from those of Bernstein's polynomials.
        const int64_t d = s_.degree, w = s_.width;
        powers_.resize(static_cast<size_t>(s_.n_coefs * (d + 1) * w));
        std::vector<double> line(static_cast<size_t>(d + 1));
        for (int64_t r = 0; r < s_.n_coefs; ++r) {
            const T* from = s_.coefs + r * (d + 1) * w;
            double* to = powers_.data() + r * (d + 1) * w;
            for (int64_t i = 0; i < w; ++i) {
                to[i] = static_cast<double>(from[i]);
                line[0] = 0.0;  // b_0 = 0 beside the start
                for (int64_t m = 1; m <= d; ++m) line[static_cast<size_t>(m)] = static_cast<double>(from[m * w + i]);
                double binomial = 1.0;
                for (int64_t j = 1; j <= d; ++j) {
                    for (size_t m = 0; m + static_cast<size_t>(j) <= static_cast<size_t>(d); ++m) {
                        line[m] = line[m + 1] - line[m];
                    }
                    binomial = binomial * static_cast<double>(d - j + 1) / static_cast<double>(j);
                    to[j * w + i] = binomial * line[0];
                }
            }
        }
    }

    double start(int64_t step, int64_t b) const { return s_.start[step * s_.batch + b]; }
    double size(int64_t step, int64_t b) const { return s_.size[step * s_.batch + b]; }

    // Some roundings of the clock, as a place in a step.
    double resolution(int64_t step, int64_t b) const {
        const double h = size(step, b), t = start(step, b);
        return kEventRoundings * kEventClock * std::max(std::fabs(t), std::fabs(t + h)) / std::fabs(h);
    }

    // Times and states at points first .. first + n, for calls of `evaluate`.
    void place(const std::vector<EventPoint>& at, size_t first, size_t n) {
        double* t;
        T* y;
        int64_t* sample;
        points_.resize(static_cast<int64_t>(n), &t, &y, &sample);
        for (size_t i = 0; i < n; ++i) {
            const EventPoint& p = at[first + i];
            t[i] = start(p.step, p.sample) + size(p.step, p.sample) * p.theta;
            sample[i] = p.sample;
            state(p, y + static_cast<int64_t>(i) * s_.width);
        }
    }

    // The state at a point, (width).
    template <class X>
    void state(const EventPoint& p, X* out) const {
        const int64_t d = s_.degree, w = s_.width;
        const double* c = powers_.data() + s_.row[p.step * s_.batch + p.sample] * (d + 1) * w;
        for (int64_t j = 0; j < w; ++j) {
            double total = c[d * w + j];
            for (int64_t m = d - 1; m >= 0; --m) total = total * p.theta + c[m * w + j];
            out[j] = static_cast<T>(total);
        }
    }

private:
    const EventSteps<T>& s_;
    EventPoints<T>& points_;
    std::vector<double> powers_;
};

// One event function on the polynomials.
template <class T>
class OneFunction final : public EventFunction {
public:
    OneFunction(Polynomials<T>& polynomials, EventPoints<T>& points, int e)
        : polynomials_(polynomials), points_(points), e_(e) {}
    void operator()(const std::vector<EventPoint>& at, std::vector<double>& values) override {
        polynomials_.place(at, 0, at.size());
        points_.evaluate(e_, values.data());
    }

private:
    Polynomials<T>& polynomials_;
    EventPoints<T>& points_;
    const int e_;
};

}  // namespace fastode
