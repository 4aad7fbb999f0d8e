// Roots of many scalar functions at once, each inside of a bracket of its own: fastode/events/roots.py, bit for bit.
//
// A root is where a function loses the sign that it has at the left end of its bracket. Functions are known by calls
// for many points at a time only, so every round of a search asks for the points of all brackets that are not done.
#pragma once

#include <cstdint>
#include <vector>

namespace fastode {

// A place in a step of a sample. `owner` is whatever the asker wants to find again.
struct EventPoint {
    int64_t sample, step;
    double theta;
};

// An event function: values[i] at points[i].
class EventFunction {
public:
    virtual ~EventFunction() = default;
    virtual void operator()(const std::vector<EventPoint>& points, std::vector<double>& values) = 0;
};

struct Bracket {
    int64_t sample, step;
    double a, b;    // places in the step, of which b may come first where it is looked for a sign from a towards b
    double fa, fb;  // values there
    double sign;    // 1 or -1: the one that the function has at a, or just after it
    double tol;     // width at which to stop
};

struct Root {
    double at;   // the first place known to be beyond
    bool jumps;  // whether the function jumps there instead of passing through zero
};

struct Found {
    double at, value;
};

// -1, 0 or 1, and NaN for NaN.
inline double sign_of(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x; }

// The root in each bracket. noise: rounding of the state, as a place in a step.
std::vector<Root> find_roots(EventFunction& function, const std::vector<Bracket>& brackets, double noise);

// Moves the left ends of brackets that begin at a root to where the sign is seen, and sets the values at both ends.
void leave_roots(EventFunction& function, std::vector<Bracket>& brackets);

// Inside of [a, b], between ends of the same sign, the points where functions go deepest.
std::vector<Found> find_dips(EventFunction& function, const std::vector<Bracket>& brackets);

// From a, where functions have a sign, towards b, where they are NaN: points with another sign.
std::vector<Found> other_signs(EventFunction& function, const std::vector<Bracket>& brackets, double noise);

}  // namespace fastode
