// Python's view of the search for events within a window: EventWindow.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "core/bind_tools.h"
#include "cpu/events/window.h"

namespace py = pybind11;

namespace fastode {
namespace {

template <class X>
py::array_t<X> array_of(const std::vector<X>& values) {
    return py::array_t<X>(static_cast<py::ssize_t>(values.size()), values.data());
}
template <class X>
py::array_t<X> matrix_of(const std::vector<X>& values, int64_t rows, int64_t columns) {
    return py::array_t<X>(std::vector<py::ssize_t>{rows, columns}, values.data());
}
py::array_t<bool> flags_of(const std::vector<uint8_t>& values, std::vector<py::ssize_t> shape) {
    return py::array_t<bool>(std::move(shape), reinterpret_cast<const bool*>(values.data()));
}

// Calls back with arrays that are given away: a function may keep what it gets.
template <class T>
class PythonPoints final : public EventPoints<T> {
public:
    PythonPoints(py::function evaluate, int64_t width) : evaluate_(std::move(evaluate)), width_(width) {}

    void resize(int64_t n, double** t, T** y, int64_t** sample) override {
        t_ = py::array_t<double>(n);
        y_ = py::array_t<T>(std::vector<py::ssize_t>{n, width_});
        sample_ = py::array_t<int64_t>(n);
        n_ = n;
        *t = t_.mutable_data();
        *y = y_.mutable_data();
        *sample = sample_.mutable_data();
    }
    void evaluate(int e, double* out) override {
        const py::array_t<double> values = evaluate_(e, t_, y_, sample_);
        if (values.ndim() != 1 || values.shape(0) != n_) throw std::invalid_argument("one value per point is needed");
        for (py::ssize_t i = 0; i < n_; ++i) out[i] = values.at(i);
    }

private:
    py::function evaluate_;
    const int64_t width_;
    py::ssize_t n_ = 0;
    py::array_t<double> t_;
    py::array_t<T> y_;
    py::array_t<int64_t> sample_;
};

using Kinds = std::vector<std::tuple<int, bool, int64_t>>;
using Pointers = std::vector<uintptr_t>;

template <class T>
py::tuple search(const Pointers& at, int64_t rows, int64_t batch, int64_t width, int64_t degree, int64_t n_coefs,
                 const Kinds& kinds, int parts, int64_t chunk, const py::function& evaluate) {
    if (at.size() != 9) throw std::invalid_argument("nine arrays are needed");
    check_sizes({rows, batch, static_cast<int64_t>(kinds.size()), parts});
    check_sizes({n_coefs, degree + 1, width});
    if (kinds.empty() || parts < 1 || chunk < 1 || degree < 1) {
        throw std::invalid_argument("events, parts, chunk and degree must be at least 1");
    }
    const EventSteps<T> steps{rows,
                              batch,
                              width,
                              degree,
                              n_coefs,
                              pointer<const double>(at[0]),
                              pointer<const double>(at[1]),
                              pointer<const int64_t>(at[2]),
                              pointer<const T>(at[3]),
                              pointer<const int64_t>(at[4]),
                              pointer<const double>(at[5]),
                              pointer<const double>(at[6]),
                              pointer<const double>(at[7]),
                              pointer<const int64_t>(at[8])};
    std::vector<EventKind> events;
    for (const auto& [direction, ending, limit] : kinds) events.push_back({direction, ending, limit});
    const auto n = static_cast<int64_t>(events.size());
    PythonPoints<T> points(evaluate, width);
    const EventsSeen seen = search_window<T>(steps, events, parts, chunk, points);
    py::list records;
    for (const EventRecords& r : seen.records) {
        records.append(py::make_tuple(array_of(r.sample), array_of(r.t), array_of(r.size),
                                      flags_of(r.jumps, {static_cast<py::ssize_t>(r.jumps.size())}),
                                      matrix_of(r.y, static_cast<int64_t>(r.t.size()), width)));
    }
    return py::make_tuple(array_of(seen.ends), array_of(seen.size), flags_of(seen.fired, {batch, n}),
                          flags_of(seen.jumps, {batch, n}), matrix_of(seen.last, batch, n),
                          matrix_of(seen.last_sign, batch, n), matrix_of(seen.signs, batch, n), records);
}

}  // namespace

void bind_events(py::module_& m) {
    m.def(
        "search_events",
        [](const Pointers& at, int64_t rows, int64_t batch, int64_t width, int64_t degree, int64_t n_coefs,
           bool is_double, const Kinds& kinds, int parts, int64_t chunk, const py::function& evaluate) {
            return is_double ? search<double>(at, rows, batch, width, degree, n_coefs, kinds, parts, chunk, evaluate)
                             : search<float>(at, rows, batch, width, degree, n_coefs, kinds, parts, chunk, evaluate);
        },
        py::arg("ptrs"), py::arg("rows"), py::arg("batch"), py::arg("width"), py::arg("degree"), py::arg("n_coefs"),
        py::arg("is_double"), py::arg("kinds"), py::arg("parts"), py::arg("chunk"), py::arg("evaluate"),
        R"(The events within the steps of a window, as fastode/events/window.py finds them.

ptrs: start, size, rows (rows, batch), coefs (n_coefs, degree + 1, width), count, direction (batch,), values and signs
at the start, occurrences so far (batch, events). kinds: direction, whether the flow ends at every occurrence, and the
occurrence that ends it (0: none) of each event. chunk: most points of a call that looks at all steps. evaluate(e, t, y,
sample): the values (n,) of event e at times (n,) and states (n, width) of samples (n,).

Returns ends, sizes (batch,), fired, jumps, values and signs at the end of the window, signs just before the ends
(batch, events), and for each event its records: samples, times, sizes of their steps, whether they are jumps, states
(n, width).)");
}

}  // namespace fastode
