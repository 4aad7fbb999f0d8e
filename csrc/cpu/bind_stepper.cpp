// Python's view of the `stepped` backend: Stepper32/64, StepRecord32/64, StepWalker32/64.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "core/bind_tools.h"
#include "core/without_gil.h"
#include "cpu/combine.h"
#include "cpu/step_walker.h"
#include "cpu/stepper.h"

namespace py = pybind11;

namespace fastode {
namespace {

using ReleaseGil = py::call_guard<WithoutGil>;

py::array_t<int64_t> copied(const std::vector<int64_t>& values) {
    return py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}
py::array_t<double> copied(const std::vector<double>& values) {
    return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

Method make_method(std::vector<double> c, std::vector<double> a, std::vector<double> e, std::vector<double> q) {
    Method method;
    method.s = static_cast<int>(c.size());
    if (method.s < 2 || method.s > kMaxTerms) throw std::invalid_argument("a method needs 2 to 32 stages");
    const auto s = c.size();
    if (a.size() != s * s || (!e.empty() && e.size() != s) || q.size() % s != 0) {
        throw std::invalid_argument("the coefficients of a method with " + std::to_string(s) + " stages do not fit");
    }
    method.degree = static_cast<int>(q.size() / s);
    if (method.degree > kMaxTerms) throw std::invalid_argument("a dense output of degree above 32");
    method.c = std::move(c);
    method.a = std::move(a);
    method.e = std::move(e);
    method.q = std::move(q);
    return method;
}

template <class T>
void bind_for(py::module_& m, const std::string& bits) {
    using Record = StepRecord<T>;
    py::class_<Record, std::shared_ptr<Record>>(m, ("StepRecord" + bits).c_str(),
                                                "Accepted steps of a batch, and states at the start of some of them.")
        .def(py::init([](int64_t batch, int64_t width, int64_t every, int64_t max_bytes) {
                 check_sizes({batch, width});
                 check_record(every, max_bytes);
                 return std::make_shared<Record>(batch, width, every, max_bytes);
             }),
             py::arg("batch"), py::arg("width"), py::arg("every"), py::arg("max_bytes"))
        .def("finish", &Record::finish, ReleaseGil())
        .def_property_readonly("steps", &Record::steps)
        .def_property_readonly("every", &Record::every)
        .def_property_readonly("state_bytes", &Record::state_bytes)
        .def("count", [](const Record& r) { return copied(r.count()); })
        .def("table", [](const Record& r) {
            // Per sample, padded to the longest: start, size and place in the order of acceptance of each step.
            const auto& count = r.count();
            const auto batch = static_cast<py::ssize_t>(count.size());
            const int64_t most = count.empty() ? 0 : *std::max_element(count.begin(), count.end());
            py::array_t<double> t({static_cast<py::ssize_t>(most), batch});
            py::array_t<double> t_next({static_cast<py::ssize_t>(most), batch});
            py::array_t<double> h({static_cast<py::ssize_t>(most), batch});
            py::array_t<int64_t> row({static_cast<py::ssize_t>(most), batch});
            for (py::ssize_t b = 0; b < batch; ++b) {
                const int64_t n = count[static_cast<size_t>(b)];
                for (int64_t j = 0; j < most; ++j) {
                    const int64_t at = n > 0 ? r.position(b, std::min(j, n - 1)) : 0;
                    *t.mutable_data(j, b) = n == 0 ? 0.0 : j < n ? r.t(at) : r.t_next(at);
                    *t_next.mutable_data(j, b) = n == 0 ? 0.0 : r.t_next(at);
                    *h.mutable_data(j, b) = j < n ? r.h(at) : 0.0;
                    *row.mutable_data(j, b) = at;
                }
            }
            return py::make_tuple(t, t_next, h, row);
        });

    using Steps = Stepper<T>;
    py::class_<Steps>(m, ("Stepper" + bits).c_str(), "One forward solve: everything of a step but the field.")
        .def(py::init([](int64_t batch, int64_t width, int64_t n_times, uintptr_t times, uintptr_t step_size,
                         uintptr_t rtol, uintptr_t atol, uintptr_t ys, int64_t max_steps, double first_step, bool dense,
                         std::vector<double> c, std::vector<double> a, std::vector<double> e, std::vector<double> q,
                         const py::dict& control, std::shared_ptr<Record> record) {
                 Method method = make_method(std::move(c), std::move(a), std::move(e), std::move(q));
                 if (step_size == 0 && method.e.empty()) {
                     throw std::invalid_argument("adaptive steps need a method with an error estimate");
                 }
                 check_sizes({n_times, batch, width});
                 if (dense && record == nullptr) throw std::invalid_argument("dense output needs a record");
                 const SolveSpec<T> spec{batch,
                                         width,
                                         n_times,
                                         pointer<const double>(times),
                                         pointer<const double>(step_size),
                                         pointer<const T>(rtol),
                                         pointer<const T>(atol),
                                         pointer<T>(ys),
                                         max_steps,
                                         first_step,
                                         dense};
                 return std::make_unique<Steps>(spec, std::move(method), make_control(control), std::move(record));
             }),
             py::kw_only(), py::arg("batch"), py::arg("width"), py::arg("n_times"), py::arg("times_ptr"),
             py::arg("step_size_ptr"), py::arg("rtol_ptr"), py::arg("atol_ptr"), py::arg("ys_ptr"),
             py::arg("max_steps"), py::arg("first_step"), py::arg("dense"), py::arg("c"), py::arg("a"), py::arg("e"),
             py::arg("q"), py::arg("control"), py::arg("record"))
        .def(
            "start", [](Steps& s, uintptr_t y0, uintptr_t k1) { s.start(pointer<const T>(y0), pointer<const T>(k1)); },
            py::arg("y0_ptr"), py::arg("k1_ptr"), ReleaseGil())
        .def(
            "probe", [](Steps& s, uintptr_t t, uintptr_t y) { s.probe(pointer<T>(t), pointer<T>(y)); },
            py::arg("t_ptr"), py::arg("y_ptr"), ReleaseGil())
        .def(
            "choose_first_step", [](Steps& s, uintptr_t k) { s.choose_first_step(pointer<const T>(k)); },
            py::arg("k_ptr"), ReleaseGil())
        .def(
            "stage",
            [](Steps& s, int i, uintptr_t k, uintptr_t t, uintptr_t y) {
                s.stage(i, pointer<const T>(k), pointer<T>(t), pointer<T>(y));
            },
            py::arg("i"), py::arg("k_ptr"), py::arg("t_ptr"), py::arg("y_ptr"), ReleaseGil())
        .def(
            "finish_step",
            [](Steps& s, uintptr_t y1, uintptr_t k) {
                return s.finish_step(pointer<const T>(y1), pointer<const T>(k));
            },
            py::arg("y1_ptr"), py::arg("k_ptr"), ReleaseGil())
        .def("compact", &Steps::compact, ReleaseGil())
        .def_property_readonly("lanes", &Steps::lanes)
        .def("running", [](const Steps& s) { return copied(s.running()); })
        .def("status", [](const Steps& s) { return copied(s.stats().status); })
        .def("reached", [](const Steps& s) { return copied(s.stats().reached); })
        .def("last_step", [](const Steps& s) { return copied(s.stats().last_step); })
        .def("last_ratio", [](const Steps& s) { return copied(s.stats().last_ratio); })
        .def("n_accepted", [](const Steps& s) { return copied(s.stats().n_accepted); })
        .def("n_rejected", [](const Steps& s) { return copied(s.stats().n_rejected); })
        .def("n_evals", [](const Steps& s) { return copied(s.stats().n_evals); })
        .def(
            "copy_dense",
            [](const Steps& s, uintptr_t out) {
                std::copy(s.dense_rows().begin(), s.dense_rows().end(), pointer<T>(out));
            },
            py::arg("out_ptr"), ReleaseGil());

    using Walker = StepWalker<T>;
    py::class_<Walker>(m, ("StepWalker" + bits).c_str(), "Reads a record back to front for the discrete adjoint.")
        .def(py::init([](std::shared_ptr<Record> record, int64_t width, int64_t n_times, int degree, uintptr_t times,
                         uintptr_t grad_ys, uintptr_t grad_coefs, std::vector<int64_t> samples) {
                 const auto batch = static_cast<int64_t>(record->count().size());
                 check_sizes({n_times, batch, width});
                 if (degree < 0 || degree > kMaxTerms) throw std::invalid_argument("a degree above 32");
                 for (const int64_t sample : samples) {
                     if (sample < 0 || sample >= batch) throw std::invalid_argument("a sample outside the batch");
                 }
                 const OutputGradients<T> outputs{batch,
                                                  width,
                                                  n_times,
                                                  degree,
                                                  pointer<const double>(times),
                                                  pointer<const T>(grad_ys),
                                                  pointer<const T>(grad_coefs)};
                 return std::make_unique<Walker>(std::move(record), outputs, std::move(samples));
             }),
             py::kw_only(), py::arg("record"), py::arg("width"), py::arg("n_times"), py::arg("degree"),
             py::arg("times_ptr"), py::arg("grad_ys_ptr"), py::arg("grad_coefs_ptr"), py::arg("samples"))
        .def(
            "states", [](const Walker& w, int64_t j, int64_t n, uintptr_t y) { w.states(j, n, pointer<T>(y)); },
            py::arg("j"), py::arg("n"), py::arg("y_ptr"), ReleaseGil())
        .def(
            "steps",
            [](const Walker& w, int64_t j, int64_t n, uintptr_t t, uintptr_t h) {
                w.steps(j, n, pointer<double>(t), pointer<double>(h));
            },
            py::arg("j"), py::arg("n"), py::arg("t_ptr"), py::arg("h_ptr"), ReleaseGil())
        .def(
            "outputs",
            [](const Walker& w, int64_t j, int64_t n, uintptr_t p, uintptr_t g) {
                return w.outputs(j, n, pointer<T>(p), pointer<T>(g));
            },
            py::arg("j"), py::arg("n"), py::arg("p_ptr"), py::arg("g_ptr"), ReleaseGil());
}

}  // namespace

void bind_stepper(py::module_& m) {
    bind_for<float>(m, "32");
    bind_for<double>(m, "64");
}

}  // namespace fastode
