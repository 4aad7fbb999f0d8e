#include "cpu/events/window.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/events/line.h"
#include "cpu/events/polynomials.h"

namespace fastode {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Change {
    Bracket bracket;
    int64_t order;
    bool ends;
    double place, t, size;  // of the root
    bool jumps;
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
        int64_t total = 0;
        for (int64_t b = 0; b < s_.batch; ++b) total += s_.count[b];
        places.reserve(static_cast<size_t>(total * parts_));
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
        for (int e = 0; e < n_events_; ++e) {
            const EventKind& kind = kinds_[static_cast<size_t>(e)];
            Line<T> line(values_[static_cast<size_t>(e)], s_, polynomials_, parts_, s_.values + e, s_.signs + e,
                         n_events_);
            OneFunction<T> function(polynomials_, points_, e);
            line.look_between(function, noise_);
            size_t offset = 0;
            for (int64_t b = 0; b < s_.batch; ++b) {
                int64_t& bound = bound_[static_cast<size_t>(b)];
                int64_t occurred = s_.occurred[at(b, e)];
                double value = s_.values[at(b, e)], sign = s_.signs[at(b, e)];
                line.each_slot(b, offset, [&](const Slot& p) {
                    value = p.after;
                    sign = p.sign;
                    const bool changed = std::fabs(p.earlier) == 1.0 && (p.sign == -p.earlier || p.sign == 0.0) &&
                                         (kind.direction == 0 || p.earlier == -kind.direction);
                    if (!changed) return;
                    const bool ends = kind.ending || ++occurred == kind.limit;
                    if (p.order <= bound) {  // what follows the end is of no interest
                        const Bracket bracket{b,        p.step,  p.left,    p.right,
                                              p.before, p.after, p.earlier, polynomials_.resolution(p.step, b)};
                        changes_[static_cast<size_t>(e)].push_back({bracket, p.order, ends, 0, 0, 0, false});
                    }
                    if (ends) bound = std::min(bound, p.order);
                });
                seen_.last[at(b, e)] = value;
                seen_.last_sign[at(b, e)] = sign;
                offset += static_cast<size_t>(s_.count[b] * parts_);
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
                limit[own] = earliest[own] + (kEventRoundings * kEventClock * std::fabs(earliest[own]) +
                                              kEventRoundings * noise_ * std::fabs(seen_.size[own]));
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
                records.y.resize(records.y.size() + static_cast<size_t>(s_.width));
                polynomials_.state(place, records.y.data() + records.y.size() - s_.width);
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
