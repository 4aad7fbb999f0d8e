// The events within the steps of one window: fastode/events/window.py and line.py, bit for bit, sample by sample.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/events/brackets.h"

namespace fastode {

// The steps of a window and what is known of the event functions. Arrays are contiguous.
template <class T>
struct EventSteps {
    int64_t rows, batch, width, degree, n_coefs;
    const double *start, *size;    // (rows, batch)
    const int64_t* row;            // (rows, batch), of coefs
    const T* coefs;                // (n_coefs, degree + 1, width), see fastode/interpolant.py
    const int64_t* count;          // (batch,), steps of each sample that are to be looked at
    const double* direction;       // (batch,)
    const double *values, *signs;  // (batch, events), at the start, the signs just after it
    const int64_t* occurred;       // (batch, events), occurrences so far
};

// One of the events, see fastode/events/event.py.
struct EventKind {
    int direction;
    bool ending;    // whether the flow ends at every occurrence
    int64_t limit;  // the occurrence that ends it; 0 if none does
};

struct EventRecords {
    std::vector<int64_t> sample;
    std::vector<double> t, size;
    std::vector<uint8_t> jumps;
    std::vector<double> y;  // (n, width), states there, rounded to T
};

// What is found, as fastode/events/window.py has it. (batch, events) where not said otherwise.
struct EventsSeen {
    std::vector<double> ends, size;  // (batch,)
    std::vector<uint8_t> fired, jumps;
    std::vector<double> last, last_sign;  // at the end of the window
    std::vector<double> signs;            // just before the end of the flow, 0 where it does not end
    std::vector<EventRecords> records;    // for each event
};

// The event functions at n times (n,) and states (n, width) of samples (n,): writes to out (n,) for event e, for
// several events one after another with the same points.
template <class T>
class EventPoints {
public:
    virtual ~EventPoints() = default;
    // Memory for the points of the next calls.
    virtual void resize(int64_t n, double** t, T** y, int64_t** sample) = 0;
    virtual void evaluate(int e, double* out) = 0;
};

// parts: of each step; chunk: most points of one call where all steps are looked at.
template <class T>
EventsSeen search_window(const EventSteps<T>& steps, const std::vector<EventKind>& events, int parts, int64_t chunk,
                         EventPoints<T>& points);

}  // namespace fastode
