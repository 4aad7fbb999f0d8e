#include "cpu/events/brackets.h"

#include <array>
#include <cmath>
#include <limits>

namespace fastode {
namespace {

// The numbers of fastode/events/roots.py.
constexpr int kMost = 60, kFinest = 60, kSections = 16, kDipPoints = 7, kDipRounds = 4;
constexpr double kJump = 0.25, kTouch = 1e-6, kFalls = 0.75;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// As numpy's: NaN if either is.
double larger(double x, double y) { return std::isnan(x) || x > y ? x : y; }
double smaller(double x, double y) { return std::isnan(x) || x < y ? x : y; }

// The points that a round asks for, and what the function is there.
class Round {
public:
    explicit Round(EventFunction& function) : function_(function) {}

    void clear() { points_.clear(); }
    void ask(const Bracket& bracket, double theta) { points_.push_back({bracket.sample, bracket.step, theta}); }
    bool empty() const { return points_.empty(); }
    void run() {
        values_.resize(points_.size());
        function_(points_, values_);
    }
    double point(size_t i) const { return points_[i].theta; }
    double value(size_t i) const { return values_[i]; }

private:
    EventFunction& function_;
    std::vector<EventPoint> points_;
    std::vector<double> values_;
};

// The bracket that is left, its middle left out: x1 still has the sign, x2 is beyond.
struct Ends {
    double x1, x2, f1, f2;

    // Narrows to the neighbours among x1, n points from number `first` of the round on, and x2, between which the sign
    // is lost. NaN is beyond.
    void shrink(const Round& round, size_t first, int n, double sign) {
        for (int i = 0; i < n; ++i) {
            const double x = round.point(first + static_cast<size_t>(i));
            const double f = round.value(first + static_cast<size_t>(i));
            if (!(f * sign > 0.0)) {
                x2 = x;
                f2 = f;
                return;
            }
            x1 = x;
            f1 = f;
        }
    }
};

struct Guess {
    double at, radius;
};

// Where a function may be zero, from three points and the ends of the bracket, and how uncertain that is.
Guess next_guess(const double* x, const double* f, const Ends& e) {
    const double secant = e.x1 + (e.x2 - e.x1) * (e.f1 / (e.f1 - e.f2));
    // Newton's form in the values: x = xa + (y - fa) d1 + (y - fa) (y - fb) d2 at y = 0.
    const double d1 = (x[1] - x[0]) / (f[1] - f[0]), d3 = (x[2] - x[1]) / (f[2] - f[1]);
    const double zero = x[0] - f[0] * d1 + f[0] * f[1] * ((d3 - d1) / (f[2] - f[0]));
    const bool inside = zero > e.x1 && zero < e.x2;
    return {inside ? zero : secant, inside ? 2 * std::fabs(zero - secant) : (e.x2 - e.x1) / 8};
}

}  // namespace

std::vector<Root> find_roots(EventFunction& function, const std::vector<Bracket>& brackets, double noise) {
    const size_t n = brackets.size();
    std::vector<Ends> ends(n);
    std::vector<Guess> guess(n);
    for (size_t i = 0; i < n; ++i) {
        const Bracket& k = brackets[i];
        ends[i] = {k.a, k.b, k.fa, k.fb};
        guess[i] = {k.a + (k.b - k.a) * (k.fa / (k.fa - k.fb)), (k.b - k.a) / 8};
    }
    Round round(function);
    std::vector<size_t> open;
    for (int turn = 0; turn < kMost; ++turn) {
        round.clear();
        open.clear();
        for (size_t i = 0; i < n; ++i) {
            const Ends& e = ends[i];
            const double width = e.x2 - e.x1, tol = brackets[i].tol;
            if (width <= tol || (e.f2 == 0.0 && width <= noise)) continue;
            const Guess& g = guess[i];
            const bool usable = g.at > e.x1 && g.at < e.x2 && g.radius < width / 2;
            const double x = usable ? g.at : e.x1 + width / 2, r = usable ? larger(g.radius, tol / 2) : width / 4;
            round.ask(brackets[i], larger(x - r, e.x1));
            round.ask(brackets[i], x);
            round.ask(brackets[i], smaller(x + r, e.x2));
            open.push_back(i);
        }
        if (open.empty()) break;
        round.run();
        for (size_t at = 0; at < open.size(); ++at) {
            const size_t i = open[at];
            Ends& e = ends[i];
            const double width = e.x2 - e.x1;
            double x[3], f[3];
            for (size_t k = 0; k < 3; ++k) {
                x[k] = round.point(3 * at + k);
                f[k] = round.value(3 * at + k);
            }
            e.shrink(round, 3 * at, 3, brackets[i].sign);
            const bool progress = e.x2 - e.x1 <= width / 4;
            const bool at_zero = e.f2 == 0.0;  // whether it is a root at one point, or the function stays there
            const Guess next = next_guess(x, f, e);
            guess[i] = {progress ? (at_zero ? e.x2 - noise : next.at) : kNan, at_zero ? noise / 4 : next.radius};
        }
    }
    // Rounding makes a function zero around a root where it only touches.
    round.clear();
    open.clear();
    for (size_t i = 0; i < n; ++i) {
        const Bracket& k = brackets[i];
        const double x2 = ends[i].x2;
        if (!(k.fb == 0.0 && x2 < k.b && k.b - x2 <= kTouch)) continue;
        round.ask(k, k.b + 4 * (k.b - x2));
        open.push_back(i);
    }
    if (!open.empty()) round.run();
    for (size_t at = 0; at < open.size(); ++at) {
        if (round.value(at) != 0.0) ends[open[at]].x2 = brackets[open[at]].b;
    }
    std::vector<Root> roots(n);
    for (size_t i = 0; i < n; ++i) {
        const Bracket& k = brackets[i];
        const Ends& e = ends[i];
        const double scale = std::fabs(k.fa) + (std::isfinite(k.fb) ? std::fabs(k.fb) : 0.0);
        // What a smooth function may change by.
        const double share = larger(k.b > k.a ? 4 * (e.x2 - e.x1) / (k.b - k.a) : 1.0, kJump);
        roots[i] = {e.x2, !(std::fabs(e.f2 - e.f1) <= share * scale)};
    }
    return roots;
}

void leave_roots(EventFunction& function, std::vector<Bracket>& brackets) {
    Round round(function);
    constexpr size_t kPoints = kFinest + 1;
    for (const Bracket& k : brackets) {
        for (int i = 0; i <= kFinest; ++i) round.ask(k, k.a + (k.b - k.a) * std::ldexp(1.0, i - kFinest));
    }
    if (round.empty()) return;
    round.run();
    for (size_t at = 0; at < brackets.size(); ++at) {
        Bracket& k = brackets[at];
        // From the right: the root that is looked for is the last one before b, as no two are told apart within a part.
        int last = kFinest;
        while (last >= 0 && sign_of(round.value(at * kPoints + static_cast<size_t>(last))) != k.sign) --last;
        const size_t left = at * kPoints + static_cast<size_t>(last < 0 ? 0 : last);
        if (last >= 0 && last < kFinest) {
            k.a = round.point(left);
            k.b = round.point(left + 1);
        } else {
            k.b = k.a;
        }
    }
    round.clear();
    for (const Bracket& k : brackets) {
        round.ask(k, k.a);
        round.ask(k, k.b);
    }
    round.run();
    for (size_t at = 0; at < brackets.size(); ++at) {
        brackets[at].fa = round.value(2 * at);
        brackets[at].fb = round.value(2 * at + 1);
    }
}

std::vector<Found> find_dips(EventFunction& function, const std::vector<Bracket>& brackets) {
    const size_t n = brackets.size();
    std::vector<Found> found(n);
    std::vector<std::array<double, 2>> ends(n);
    for (size_t i = 0; i < n; ++i) {
        ends[i] = {brackets[i].a, brackets[i].b};
        found[i] = {brackets[i].a, kInfinity};  // as a depth: the value times the sign
    }
    Round round(function);
    std::vector<size_t> open;
    for (int turn = 0; turn < kDipRounds; ++turn) {
        round.clear();
        open.clear();
        for (size_t i = 0; i < n; ++i) {
            if (found[i].value <= 0.0) continue;
            const auto [a, b] = ends[i];
            for (int k = 1; k <= kDipPoints; ++k) {
                round.ask(brackets[i], a + (b - a) * (static_cast<double>(k) / (kDipPoints + 1)));
            }
            open.push_back(i);
        }
        if (open.empty()) break;
        round.run();
        for (size_t at = 0; at < open.size(); ++at) {
            const size_t i = open[at];
            for (size_t k = at * kDipPoints; k < (at + 1) * kDipPoints; ++k) {
                const double depth = round.value(k) * brackets[i].sign;
                if (depth < found[i].value) found[i] = {round.point(k), depth};
            }
            auto& [a, b] = ends[i];
            const double gap = (b - a) / (kDipPoints + 1);
            a = larger(a, found[i].at - gap);
            b = smaller(b, found[i].at + gap);
        }
    }
    for (size_t i = 0; i < n; ++i) found[i].value *= brackets[i].sign;
    return found;
}

std::vector<Found> other_signs(EventFunction& function, const std::vector<Bracket>& brackets, double noise) {
    const size_t n = brackets.size();
    std::vector<Ends> ends(n);
    for (size_t i = 0; i < n; ++i) {
        const Bracket& k = brackets[i];
        ends[i] = {k.a, k.b, k.sign, kNan};
    }
    Round round(function);
    std::vector<size_t> open;
    for (int turn = 0; turn < kMost; ++turn) {
        round.clear();
        open.clear();
        for (size_t i = 0; i < n; ++i) {
            const Ends& e = ends[i];
            if (std::fabs(e.x2 - e.x1) <= brackets[i].tol || !std::isnan(e.f2)) continue;
            for (int k = 1; k < kSections; ++k) {
                round.ask(brackets[i], e.x1 + (e.x2 - e.x1) * (static_cast<double>(k) / kSections));
            }
            open.push_back(i);
        }
        if (open.empty()) break;
        round.run();
        for (size_t at = 0; at < open.size(); ++at) {
            ends[open[at]].shrink(round, at * (kSections - 1), kSections - 1, brackets[open[at]].sign);
        }
    }
    // Where no other sign was found it is the last point at which the function is defined, with the value zero if the
    // function falls to zero there, as sqrt does.
    round.clear();
    open.clear();
    for (size_t i = 0; i < n; ++i) {
        if (!std::isnan(ends[i].f2)) continue;
        const Bracket& k = brackets[i];
        const double step = sign_of(k.a - k.b) * larger(4 * k.tol, 16 * noise);
        round.ask(k, ends[i].x1 + step);
        round.ask(k, ends[i].x1 + 16 * step);
        open.push_back(i);
    }
    if (!open.empty()) round.run();
    std::vector<Found> found(n);
    for (size_t i = 0; i < n; ++i) found[i] = {ends[i].x2, ends[i].f2};
    for (size_t at = 0; at < open.size(); ++at) {
        const size_t i = open[at];
        const double near = round.value(2 * at), far = round.value(2 * at + 1);
        const bool falls = near * brackets[i].sign > 0.0 && std::fabs(near) <= kFalls * std::fabs(far);
        found[i] = {ends[i].x1, falls ? 0.0 : ends[i].f1};
    }
    return found;
}

}  // namespace fastode
