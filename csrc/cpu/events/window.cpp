#include "cpu/events/window.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastode {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kRoundings = 4;  // width at which times are the same, and at which a root counts as found
constexpr double kClock = std::numeric_limits<double>::epsilon();
constexpr double kDeep = 0.5;  // see fastode/events/line.py

// The end of a part of a step, or a point within a part: what a function is there, and what it was before.
struct Slot {
    int64_t step;
    int64_t order;  // by which the points of several functions can be compared
    double left, right, before, after, earlier, sign;
};

struct Change {
    Bracket bracket;
    int64_t order;
    bool ends;
    double place, t, size;  // of the root
    bool jumps;
};

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
        return kRoundings * kClock * std::max(std::fabs(t), std::fabs(t + h)) / std::fabs(h);
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
            for (int64_t j = 0; j < s_.width; ++j) y[static_cast<int64_t>(i) * s_.width + j] = state(p, j);
        }
    }

    T state(const EventPoint& p, int64_t component) const {
        const int64_t d = s_.degree, w = s_.width;
        const double* c = powers_.data() + s_.row[p.step * s_.batch + p.sample] * (d + 1) * w + component;
        double total = c[d * w];
        for (int64_t m = d - 1; m >= 0; --m) total = total * p.theta + c[m * w];
        return static_cast<T>(total);
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
          parts_(parts),
          first_(first),
          sign_(sign),
          stride_(stride) {}

    // Between two points with the same sign a parabola through three points tells whether the function may pass through
    // zero and back; next to NaN there may be a root before that or after it. Finds points in between, where that is
    // so.
    void look_between(EventFunction& function, double noise) {
        std::vector<Bracket> dips, gaps;
        std::vector<size_t> dip_at, gap_at;
        std::vector<double> middles;  // of dips
        size_t offset = 0;
        for (int64_t b = 0; b < s_.batch; ++b) {
            const int64_t n = s_.count[b] * parts_;
            for (int64_t j = 0; j < n; ++j) {
                const size_t at = offset + static_cast<size_t>(j);
                const double before = j == 0 ? first_[b * stride_] : values_[at - 1], after = values_[at];
                const double earlier = j == 0 ? sign_[b * stride_] : sign_of(before), sign = sign_of(after);
                const int64_t step = j / parts_;
                const double left = left_of(j), right = right_of(j);
                if (j % parts_ + 1 < parts_ && is_deep(before, after, values_[at + 1])) {
                    dips.push_back({b, step, left, right + 1.0 / static_cast<double>(parts_), 0, 0, sign, 0});
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
            }
            offset += static_cast<size_t>(n);
        }
        if (dips.empty() && gaps.empty()) return;
        held_.assign(values_.size(), 0);
        inner_.resize(values_.size());
        const auto hold = [&](size_t at, const Found& found) {
            held_[at] = 1;
            inner_[at] = found;
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

    // The points of a sample in order; `offset` is where its values begin.
    void slots(int64_t b, int64_t offset, std::vector<Slot>& out) const {
        out.clear();
        double before = first_[b * stride_], sign = sign_[b * stride_];
        for (int64_t j = 0; j < s_.count[b] * parts_; ++j) {
            const auto at = static_cast<size_t>(offset + j);
            double left = left_of(j);
            const auto add = [&](double right, double value, int64_t order) {
                double next = sign_of(value);
                if (std::isnan(next)) next = sign;  // NaN has no sign: the last one that was seen counts
                out.push_back({j / parts_, order, left, right, before, value, sign, next});
                left = right;
                before = value;
                sign = next;
            };
            if (!held_.empty() && held_[at]) add(inner_[at].at, inner_[at].value, 2 * j);
            add(right_of(j), values_[at], 2 * j + 1);
        }
    }

private:
    double left_of(int64_t j) const { return static_cast<double>(j % parts_) / static_cast<double>(parts_); }
    double right_of(int64_t j) const { return static_cast<double>(j % parts_ + 1) / static_cast<double>(parts_); }

    static bool is_deep(double left, double middle, double right) {
        const double bend = left - 2 * middle + right, slope = (right - left) / 2;
        // At the vertex, within the two parts, remains middle - slope^2 / (2 bend).
        return left * middle > 0 && middle * right > 0 && bend * middle > 0 && std::fabs(slope) < std::fabs(bend) &&
               slope * slope > 2 * (1 - kDeep) * (bend * middle);
    }

    const std::vector<double>& values_;
    const EventSteps<T>& s_;
    const Polynomials<T>& polynomials_;
    const int64_t parts_;
    const double *first_, *sign_;
    const int64_t stride_;
    std::vector<uint8_t> held_;  // whether there is a point within the part, which is `inner_`
    std::vector<Found> inner_;
};

template <class T>
class Search {
public:
    Search(const EventSteps<T>& steps, const std::vector<EventKind>& events, int parts, int64_t chunk,
           EventPoints<T>& points)
        : s_(steps),
          kinds_(events),
          parts_(parts),
          chunk_(chunk),
          n_events_(static_cast<int64_t>(events.size())),
          points_(points),
          polynomials_(steps, points),
          noise_(std::numeric_limits<T>::epsilon()) {
        const auto batch = static_cast<size_t>(s_.batch), all = static_cast<size_t>(s_.batch * n_events_);
        seen_.ends.assign(batch, kInfinity);
        seen_.size.assign(batch, 0.0);
        seen_.fired.assign(all, 0);
        seen_.jumps.assign(all, 0);
        seen_.last.assign(s_.values, s_.values + all);
        seen_.last_sign.assign(s_.signs, s_.signs + all);
        seen_.signs.assign(all, 0.0);
        seen_.records.resize(events.size());
    }

    EventsSeen run() {
        sample_all();
        find_changes();
        find_times();
        settle();
        if (n_events_ > 1) look_before_the_end();
        return std::move(seen_);
    }

private:
    size_t at(int64_t b, int64_t e) const { return static_cast<size_t>(b * n_events_ + e); }

    // Each event function at the ends of the parts of all steps.
    void sample_all() {
        std::vector<EventPoint> places;
        for (int64_t b = 0; b < s_.batch; ++b) {
            for (int64_t n = 0; n < s_.count[b]; ++n) {
                for (int i = 1; i <= parts_; ++i) places.push_back({b, n, static_cast<double>(i) / parts_});
            }
        }
        values_.assign(static_cast<size_t>(n_events_), std::vector<double>(places.size()));
        for (size_t first = 0; first < places.size(); first += static_cast<size_t>(chunk_)) {
            const size_t n = std::min(static_cast<size_t>(chunk_), places.size() - first);
            polynomials_.place(places, first, n);
            for (int e = 0; e < n_events_; ++e) {
                points_.evaluate(e, values_[static_cast<size_t>(e)].data() + first);
            }
        }
    }

    void find_changes() {
        changes_.resize(static_cast<size_t>(n_events_));
        bound_.assign(static_cast<size_t>(s_.batch), std::numeric_limits<int64_t>::max());
        std::vector<Slot> slots;
        for (int e = 0; e < n_events_; ++e) {
            const EventKind& kind = kinds_[static_cast<size_t>(e)];
            Line<T> line(values_[static_cast<size_t>(e)], s_, polynomials_, parts_, s_.values + e, s_.signs + e,
                         n_events_);
            OneFunction<T> function(polynomials_, points_, e);
            line.look_between(function, noise_);
            int64_t offset = 0;
            for (int64_t b = 0; b < s_.batch; ++b) {
                line.slots(b, offset, slots);
                offset += s_.count[b] * parts_;
                int64_t occurred = s_.occurred[at(b, e)];
                for (const Slot& p : slots) {
                    const bool changed = std::fabs(p.earlier) == 1.0 && (p.sign == -p.earlier || p.sign == 0.0) &&
                                         (kind.direction == 0 || p.earlier == -kind.direction);
                    if (!changed) continue;
                    const bool ends = kind.ending || ++occurred == kind.limit;
                    const Bracket bracket{b,        p.step,  p.left,    p.right,
                                          p.before, p.after, p.earlier, polynomials_.resolution(p.step, b)};
                    changes_[static_cast<size_t>(e)].push_back({bracket, p.order, ends, 0, 0, 0, false});
                    if (!ends) continue;
                    bound_[static_cast<size_t>(b)] = std::min(bound_[static_cast<size_t>(b)], p.order);
                    break;  // what follows is beyond
                }
                if (slots.empty()) continue;
                seen_.last[at(b, e)] = slots.back().after;
                seen_.last_sign[at(b, e)] = slots.back().sign;
            }
        }
    }

    void find_times() {
        for (int e = 0; e < n_events_; ++e) {
            auto& changes = changes_[static_cast<size_t>(e)];
            changes.erase(std::remove_if(changes.begin(), changes.end(),
                                         [this](const Change& c) {
                                             return c.order > bound_[static_cast<size_t>(c.bracket.sample)];
                                         }),
                          changes.end());
            if (changes.empty()) continue;
            OneFunction<T> function(polynomials_, points_, e);
            std::vector<Bracket> brackets, at_root;
            std::vector<size_t> which;
            for (const Change& c : changes) {
                Bracket k = c.bracket;
                if (std::isnan(k.fa)) {
                    k.a = k.b;  // after a gap without values, which was followed to its end
                } else if (sign_of(k.fa) != k.sign) {
                    which.push_back(brackets.size());
                    at_root.push_back(k);
                }
                brackets.push_back(k);
            }
            leave_roots(function, at_root);
            for (size_t i = 0; i < which.size(); ++i) brackets[which[i]] = at_root[i];
            const std::vector<Root> roots = find_roots(function, brackets, noise_);
            for (size_t i = 0; i < changes.size(); ++i) {
                const Bracket& k = brackets[i];
                changes[i].size = polynomials_.size(k.step, k.sample);
                changes[i].place = roots[i].at;
                changes[i].t = polynomials_.start(k.step, k.sample) + changes[i].size * roots[i].at;
                changes[i].jumps = roots[i].jumps;
            }
        }
    }

    // The first of the events that end the flow, and whatever else happens at the same time.
    void settle() {
        const auto batch = static_cast<size_t>(s_.batch);
        std::vector<double> first(batch * static_cast<size_t>(n_events_), kInfinity), earliest(batch, kInfinity);
        std::vector<double> limit(batch, kInfinity);
        for (int e = 0; e < n_events_; ++e) {
            for (const Change& c : changes_[static_cast<size_t>(e)]) {
                if (!c.ends) continue;
                const int64_t b = c.bracket.sample;
                const auto own = static_cast<size_t>(b);
                first[at(b, e)] = s_.direction[b] * c.t;
                earliest[own] = std::min(earliest[own], first[at(b, e)]);
                seen_.size[own] = std::fabs(c.size);
                seen_.jumps[at(b, e)] = c.jumps;
            }
        }
        for (int64_t b = 0; b < s_.batch; ++b) {
            const auto own = static_cast<size_t>(b);
            const bool ending = std::isfinite(earliest[own]);
            if (ending) {
                limit[own] = earliest[own] + (kRoundings * kClock * std::fabs(earliest[own]) +
                                              kRoundings * noise_ * std::fabs(seen_.size[own]));
                seen_.ends[own] = earliest[own] * s_.direction[b];
            }
            for (int e = 0; e < n_events_; ++e) {
                seen_.fired[at(b, e)] = ending && first[at(b, e)] <= limit[own];
                seen_.jumps[at(b, e)] &= seen_.fired[at(b, e)];
            }
        }
        for (int e = 0; e < n_events_; ++e) {
            if (kinds_[static_cast<size_t>(e)].ending) continue;
            EventRecords& records = seen_.records[static_cast<size_t>(e)];
            for (const Change& c : changes_[static_cast<size_t>(e)]) {
                const int64_t b = c.bracket.sample;
                const double along = s_.direction[b] * c.t;
                if (c.ends || !(along <= limit[static_cast<size_t>(b)])) continue;
                records.sample.push_back(b);
                records.t.push_back(along > earliest[static_cast<size_t>(b)] ? seen_.ends[static_cast<size_t>(b)]
                                                                             : c.t);
                records.size.push_back(c.size);
                records.jumps.push_back(c.jumps);
                const EventPoint place{b, c.bracket.step, c.place};
                for (int64_t i = 0; i < s_.width; ++i) {
                    records.y.push_back(static_cast<double>(polynomials_.state(place, i)));
                }
            }
        }
    }

    // Signs of all functions at the ends of the flow.
    void look_before_the_end() {
        std::vector<EventPoint> places;
        for (int64_t b = 0; b < s_.batch; ++b) {
            const double end = seen_.ends[static_cast<size_t>(b)];
            if (!std::isfinite(end)) continue;
            int64_t passed = 0;
            for (int64_t n = 0; n < s_.count[b]; ++n) {
                passed += s_.direction[b] * (end - polynomials_.start(n, b)) >= 0;
            }
            const int64_t step = std::max<int64_t>(passed - 1, 0);
            places.push_back({b, step, (end - polynomials_.start(step, b)) / polynomials_.size(step, b)});
        }
        if (places.empty()) return;
        std::vector<double> found(places.size());
        polynomials_.place(places, 0, places.size());
        for (int e = 0; e < n_events_; ++e) {
            points_.evaluate(e, found.data());
            for (size_t i = 0; i < places.size(); ++i) seen_.signs[at(places[i].sample, e)] = sign_of(found[i]);
        }
    }

    const EventSteps<T>& s_;
    const std::vector<EventKind>& kinds_;
    const int parts_;
    const int64_t chunk_, n_events_;
    EventPoints<T>& points_;
    Polynomials<T> polynomials_;
    const double noise_;
    EventsSeen seen_;
    std::vector<std::vector<double>> values_;   // of each event, sample by sample
    std::vector<std::vector<Change>> changes_;  // of each event, those of a sample one after another
    std::vector<int64_t> bound_;                // of each sample, the point at which its flow ends
};

}  // namespace

template <class T>
EventsSeen search_window(const EventSteps<T>& steps, const std::vector<EventKind>& events, int parts, int64_t chunk,
                         EventPoints<T>& points) {
    return Search<T>(steps, events, parts, chunk, points).run();
}

template EventsSeen search_window(const EventSteps<float>&, const std::vector<EventKind>&, int, int64_t,
                                  EventPoints<float>&);
template EventsSeen search_window(const EventSteps<double>&, const std::vector<EventKind>&, int, int64_t,
                                  EventPoints<double>&);

}  // namespace fastode
