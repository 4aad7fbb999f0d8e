// One event function at the ends of equal parts of each step and where else it is needed: fastode/events/line.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/events/brackets.h"
#include "cpu/events/polynomials.h"
#include "cpu/events/window.h"

namespace fastode {

// A parabola that leaves less than this part of the value in its middle is followed to its vertex.
constexpr double kDeepDip = 0.5;

// The end of a part of a step, or a point within a part: what a function is there, and what it was before.
struct Slot {
    int64_t step;
    int64_t order;  // by which the points of several functions can be compared
    double left, right, before, after, earlier, sign;
};

// One event function along the steps of all samples.
template <class T>
class Line {
public:
    // values: at the ends of the parts of all steps, sample by sample. first, sign: at the start, `stride` apart.
    Line(const std::vector<double>& values, const EventSteps<T>& steps, const Polynomials<T>& polynomials, int parts,
         const double* first, const double* sign, int64_t stride)
        : values_(values),
          s_(steps),
          polynomials_(polynomials),
          parts_(static_cast<size_t>(parts)),
          first_(first),
          sign_(sign),
          stride_(stride) {
        for (int i = 0; i <= parts; ++i) places_.push_back(static_cast<double>(i) / parts);
    }

    // Between two points with the same sign a parabola through three points tells whether the function may pass through
    // zero and back; next to NaN there may be a root before that or after it. Finds points in between, where that is
    // so.
    void look_between(EventFunction& function, double noise) {
        std::vector<Bracket> dips, gaps;
        std::vector<size_t> dip_at, gap_at;
        std::vector<double> middles;  // of dips
        size_t at = 0;
        for (int64_t b = 0; b < s_.batch; ++b) {
            double before = first_[b * stride_], earlier = sign_[b * stride_];
            for (int64_t step = 0; step < s_.count[b]; ++step) {
                for (size_t i = 0; i < parts_; ++i, ++at) {
                    const double after = values_[at], sign = sign_of(after);
                    const double left = places_[i], right = places_[i + 1];
                    if (i + 1 < parts_ && is_deep(before, after, values_[at + 1])) {
                        dips.push_back({b, step, left, right + places_[1], 0, 0, sign, 0});
                        dip_at.push_back(at);
                        middles.push_back(right);
                    }
                    if (std::isnan(after) && std::fabs(earlier) == 1.0) {
                        gaps.push_back({b, step, left, right, 0, 0, earlier, polynomials_.resolution(step, b)});
                        gap_at.push_back(at);
                    }
                    if (std::isnan(before) && std::fabs(sign) == 1.0) {
                        gaps.push_back({b, step, right, left, 0, 0, sign, polynomials_.resolution(step, b)});
                        gap_at.push_back(at);
                    }
                    before = after;
                    earlier = sign;
                }
            }
        }
        if (dips.empty() && gaps.empty()) return;
        held_.assign(values_.size(), 0);
        inner_.resize(values_.size());
        const auto hold = [&](size_t where, const Found& found) {
            held_[where] = 1;
            inner_[where] = found;
        };
        if (!dips.empty()) {
            const std::vector<Found> found = find_dips(function, dips);
            for (size_t i = 0; i < dips.size(); ++i) {
                if (!(found[i].value * dips[i].sign <= 0.0)) continue;
                hold(dip_at[i] + (found[i].at > middles[i] ? 1 : 0), found[i]);
            }
        }
        if (!gaps.empty()) {
            const std::vector<Found> found = other_signs(function, gaps, noise);
            for (size_t i = 0; i < gaps.size(); ++i) hold(gap_at[i], found[i]);
        }
    }

    // Calls see(slot) for the points of a sample in order. `from` is where its values begin.
    template <class See>
    void each_slot(int64_t b, size_t from, const See& see) const {
        size_t at = from;
        Slot p{};
        p.after = first_[b * stride_];
        p.sign = sign_[b * stride_];
        const auto go_to = [&p](double right, double value) {
            p.left = p.right;
            p.right = right;
            p.before = p.after;
            p.after = value;
            p.earlier = p.sign;
            const double sign = sign_of(value);
            if (!std::isnan(sign)) p.sign = sign;  // NaN has no sign: the last one that was seen counts
        };
        for (p.step = 0; p.step < s_.count[b]; ++p.step) {
            p.right = 0.0;
            for (size_t i = 0; i < parts_; ++i, ++at) {
                if (!held_.empty() && held_[at]) {
                    go_to(inner_[at].at, inner_[at].value);
                    p.order = 2 * static_cast<int64_t>(at - from);
                    see(p);
                }
                go_to(places_[i + 1], values_[at]);
                p.order = 2 * static_cast<int64_t>(at - from) + 1;
                see(p);
            }
        }
    }

private:
    static bool is_deep(double left, double middle, double right) {
        const double bend = left - 2 * middle + right, slope = (right - left) / 2;
        // At the vertex, within the two parts, remains middle - slope^2 / (2 bend).
        return left * middle > 0 && middle * right > 0 && bend * middle > 0 && std::fabs(slope) < std::fabs(bend) &&
               slope * slope > 2 * (1 - kDeepDip) * (bend * middle);
    }

    const std::vector<double>& values_;
    const EventSteps<T>& s_;
    const Polynomials<T>& polynomials_;
    const size_t parts_;
    const double *first_, *sign_;
    const int64_t stride_;
    std::vector<double> places_;  // of the ends of parts in a step
    std::vector<uint8_t> held_;   // whether there is a point within the part, which is `inner_`
    std::vector<Found> inner_;
};

}  // namespace fastode
