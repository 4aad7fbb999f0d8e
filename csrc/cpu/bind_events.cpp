// Python's view of the search for events within a window: EventWindow.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

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
    // narrow: the functions get times in T.
    PythonPoints(py::function evaluate, int64_t width, bool narrow)
        : evaluate_(std::move(evaluate)), width_(width), narrow_(narrow) {}

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
        const py::object values = evaluate_(e, times(), y_, sample_);
        if (py::isinstance<py::array_t<float>>(values)) {
            copy<float>(values, out);
        } else {
            copy<double>(values, out);
        }
    }

private:
    py::array times() const {
        if (!narrow_) return t_;
        py::array_t<T> narrow(n_);
        std::copy_n(t_.data(), n_, narrow.mutable_data());
        return std::move(narrow);
    }
    template <class X>
    void copy(const py::array_t<X>& values, double* out) const {
        if (values.ndim() != 1 || values.shape(0) != n_) throw std::invalid_argument("one value per point is needed");
        const auto from = values.template unchecked<1>();
        for (py::ssize_t i = 0; i < n_; ++i) out[i] = static_cast<double>(from(i));
    }

    py::function evaluate_;
    const int64_t width_;
    const bool narrow_;
    py::ssize_t n_ = 0;
    py::array_t<double> t_;
    py::array_t<T> y_;
    py::array_t<int64_t> sample_;
};

using Kinds = std::vector<std::tuple<int, bool, int64_t>>;
template <class X>
using Array = py::array_t<X, py::array::c_style | py::array::forcecast>;

// What is known of each sample at the start of a window.
struct Known {
    Array<int64_t> count, occurred;
    Array<double> direction, values, signs;
};

template <class T>
py::tuple search(const Array<double>& start, const Array<double>& size, const Array<int64_t>& row,
                 const Array<T>& coefs, const Known& known, const Kinds& kinds, int parts, int64_t chunk, bool narrow,
                 const py::function& evaluate) {
    const auto n_events = static_cast<py::ssize_t>(kinds.size());
    if (kinds.empty() || parts < 1 || chunk < 1) throw std::invalid_argument("events, parts and chunk are at least 1");
    if (coefs.ndim() != 3 || coefs.shape(1) < 2 || start.ndim() != 2) throw std::invalid_argument("no polynomials");
    const int64_t rows = start.shape(0), batch = start.shape(1), width = coefs.shape(2);
    const auto fits = [](const py::array& x, int64_t first, int64_t second) {
        if (x.ndim() != 2 || x.shape(0) != first || x.shape(1) != second) throw std::invalid_argument("another shape");
    };
    fits(size, rows, batch);
    fits(row, rows, batch);
    fits(known.occurred, batch, n_events);
    fits(known.values, batch, n_events);
    fits(known.signs, batch, n_events);
    if (known.count.size() != batch || known.direction.size() != batch) throw std::invalid_argument("another batch");
    const EventSteps<T> steps{rows,
                              batch,
                              width,
                              coefs.shape(1) - 1,
                              coefs.shape(0),
                              start.data(),
                              size.data(),
                              row.data(),
                              coefs.data(),
                              known.count.data(),
                              known.direction.data(),
                              known.values.data(),
                              known.signs.data(),
                              known.occurred.data()};
    std::vector<EventKind> events;
    for (const auto& [direction, ending, limit] : kinds) events.push_back({direction, ending, limit});
    const auto n = static_cast<int64_t>(events.size());
    PythonPoints<T> points(evaluate, width, narrow);
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
        [](const Array<double>& start, const Array<double>& size, const Array<int64_t>& rows, const py::array& coefs,
           const Array<int64_t>& count, const Array<double>& direction, const Array<double>& values,
           const Array<double>& signs, const Array<int64_t>& occurred, const Kinds& kinds, int parts, int64_t chunk,
           bool narrow, const py::function& evaluate) {
            const Known known{count, occurred, direction, values, signs};
            return py::isinstance<py::array_t<double>>(coefs)
                       ? search<double>(start, size, rows, coefs, known, kinds, parts, chunk, narrow, evaluate)
                       : search<float>(start, size, rows, coefs, known, kinds, parts, chunk, narrow, evaluate);
        },
        py::arg("start"), py::arg("size"), py::arg("rows"), py::arg("coefs"), py::arg("count"), py::arg("direction"),
        py::arg("values"), py::arg("signs"), py::arg("occurred"), py::arg("kinds"), py::arg("parts"), py::arg("chunk"),
        py::arg("narrow"), py::arg("evaluate"),
        R"(The events within the steps of a window, as fastode/events/window.py finds them.

start, size, rows (N, B), coefs (R, degree + 1, D): the steps, see fastode.solution.DenseOutput. count, direction (B,);
values and signs at the start, occurrences so far (B, E). kinds: direction, whether the flow ends at every occurrence,
and the occurrence that ends it (0: none) of each event. chunk: most points of a call that looks at all steps.
evaluate(e, t, y, sample): the values (n,) of event e at times (n,), in the dtype of coefs if narrow, and states (n, D) of
samples (n,).

Returns ends, sizes (B,), fired, jumps, values and signs at the end of the window, signs just before the ends (B, E), and
for each event its records: samples, times, sizes of their steps, whether they are jumps, states (n, D).)");
}

}  // namespace fastode
