// Python's view of the kernels of the `stepped` backend on a device: StepKernels32/64 and StepWalk32/64.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core/bind_tools.h"
#include "core/without_gil.h"
#include "cuda/step_launch.h"

namespace py = pybind11;

namespace fastode {
namespace {

using ReleaseGil = py::call_guard<WithoutGil>;

template <class T>
const StepLaunches<T>& launches(bool device) {
    if constexpr (std::is_same_v<T, float>) {
        return for_device(device, host_step_launches_f32, FASTODE_WITH_CUDA(cuda_step_launches_f32));
    } else {
        return for_device(device, host_step_launches_f64, FASTODE_WITH_CUDA(cuda_step_launches_f64));
    }
}

template <class T>
struct Kernels {
    StepState<T> state;
    std::vector<double> c, a, e;
    const StepLaunches<T>* run;
    int device;

    Stream on(uintptr_t stream) const { return {device, pointer<void>(stream)}; }

    const T* plane(int i) const { return state.k + i * state.batch * state.width; }

    void stage(int i, uintptr_t value, uintptr_t t, uintptr_t y, uintptr_t stream) const {
        Terms<T> terms;
        for (int j = 0; j < i; ++j) terms.add(a[static_cast<size_t>(i * state.s + j)], plane(j));
        run->stage(state, terms, i, c[static_cast<size_t>(i)], pointer<const T>(value), pointer<T>(t), pointer<T>(y),
                   on(stream));
    }

    void finish(uintptr_t y1, uintptr_t value, uintptr_t stream) const {
        Terms<T> error;
        for (int j = 0; state.adaptive && j < state.s; ++j) {
            error.add(e[static_cast<size_t>(j)], j + 1 < state.s ? plane(j) : pointer<const T>(value));
        }
        run->finish(state, error, pointer<const T>(y1), pointer<const T>(value), on(stream));
    }
};

template <class T>
struct Walk {
    WalkState<T> state;
    const StepLaunches<T>* run;
    int device;

    Stream on(uintptr_t stream) const { return {device, pointer<void>(stream)}; }
};

template <class T>
void bind_for(py::module_& m, const std::string& bits) {
    using K = Kernels<T>;
    py::class_<K>(m, ("StepKernels" + bits).c_str(),
                  "Everything of a step but the field, on a GPU or, for tests, on the host.")
        .def(py::init([](int device, int64_t batch, int64_t width, int64_t n_times, int64_t max_steps,
                         double first_step, uintptr_t times, uintptr_t step_size, uintptr_t rtol, uintptr_t atol,
                         uintptr_t q, uintptr_t ys, uintptr_t sample, uintptr_t real, uintptr_t whole,
                         uintptr_t counters, uintptr_t y, uintptr_t k, uintptr_t partial, std::vector<double> c,
                         std::vector<double> a, std::vector<double> e, int degree, const py::dict& control) {
                 const auto s = c.size();
                 if (s < 2 || s > kMostStages || degree < 0 || degree > kMostStages || a.size() != s * s ||
                     (step_size == 0 && e.size() != s)) {
                     throw std::invalid_argument("the coefficients of the method do not fit");
                 }
                 check_sizes({n_times, batch, width});
                 K kernels;
                 kernels.run = &launches<T>(device >= 0);
                 kernels.device = device;
                 kernels.c = std::move(c);
                 kernels.a = std::move(a);
                 kernels.e = std::move(e);
                 StepState<T>& state = kernels.state;
                 state = {};
                 state.batch = state.lanes = batch;
                 state.width = width;
                 state.n_times = n_times;
                 state.max_steps = max_steps;
                 state.s = static_cast<int>(s);
                 state.degree = degree;
                 state.adaptive = step_size == 0;
                 state.first_step = first_step;
                 state.times = pointer<const double>(times);
                 state.step_size = pointer<const double>(step_size);
                 state.rtol = pointer<const T>(rtol);
                 state.atol = pointer<const T>(atol);
                 state.q = pointer<const double>(q);
                 state.ys = pointer<T>(ys);
                 state.sample = pointer<const int64_t>(sample);
                 state.real = pointer<double>(real);
                 state.whole = pointer<int64_t>(whole);
                 state.counters = pointer<int64_t>(counters);
                 state.y = pointer<T>(y);
                 state.k = pointer<T>(k);
                 state.partial = pointer<double>(partial);
                 state.control = make_control(control);
                 return kernels;
             }),
             py::kw_only(), py::arg("device"), py::arg("batch"), py::arg("width"), py::arg("n_times"),
             py::arg("max_steps"), py::arg("first_step"), py::arg("times_ptr"), py::arg("step_size_ptr"),
             py::arg("rtol_ptr"), py::arg("atol_ptr"), py::arg("q_ptr"), py::arg("ys_ptr"), py::arg("sample_ptr"),
             py::arg("real_ptr"), py::arg("whole_ptr"), py::arg("counters_ptr"), py::arg("y_ptr"), py::arg("k_ptr"),
             py::arg("partial_ptr"), py::arg("c"), py::arg("a"), py::arg("e"), py::arg("degree"), py::arg("control"))
        .def(
            "keep_record",
            [](K& k, uintptr_t steps, uintptr_t states, uintptr_t coefs, int64_t steps_per_chunk,
               int64_t states_per_chunk, int64_t every) {
                check_record(every, 0);
                k.state.step_chunks = pointer<StepRow* const>(steps);
                k.state.state_chunks = pointer<T* const>(states);
                k.state.coef_chunks = pointer<T* const>(coefs);
                k.state.steps_per_chunk = steps_per_chunk;
                k.state.states_per_chunk = states_per_chunk;
                k.state.every = every;
            },
            py::kw_only(), py::arg("step_chunks_ptr"), py::arg("state_chunks_ptr"), py::arg("coef_chunks_ptr"),
            py::arg("steps_per_chunk"), py::arg("states_per_chunk"), py::arg("every"),
            "Where steps, states and dense output are recorded: tables of the addresses of chunks.")
        .def(
            "use_lanes",
            [](K& k, int64_t lanes, uintptr_t sample) {
                k.state.lanes = lanes;
                k.state.sample = pointer<const int64_t>(sample);
            },
            py::arg("lanes"), py::arg("sample_ptr"), "After the rows of y and of the first stage were compacted.")
        .def(
            "start",
            [](const K& k, uintptr_t y0, uintptr_t k1, uintptr_t stream) {
                k.run->start(k.state, pointer<const T>(y0), pointer<const T>(k1), k.on(stream));
            },
            py::arg("y0_ptr"), py::arg("k1_ptr"), py::arg("stream"), ReleaseGil())
        .def(
            "probe",
            [](const K& k, uintptr_t t, uintptr_t y, uintptr_t stream) {
                k.run->probe(k.state, pointer<T>(t), pointer<T>(y), k.on(stream));
            },
            py::arg("t_ptr"), py::arg("y_ptr"), py::arg("stream"), ReleaseGil())
        .def(
            "choose_first_step",
            [](const K& k, uintptr_t value, uintptr_t stream) {
                k.run->choose(k.state, pointer<const T>(value), k.on(stream));
            },
            py::arg("k_ptr"), py::arg("stream"), ReleaseGil())
        .def("stage", &K::stage, py::arg("i"), py::arg("k_ptr"), py::arg("t_ptr"), py::arg("y_ptr"), py::arg("stream"),
             ReleaseGil())
        .def("finish_step", &K::finish, py::arg("y1_ptr"), py::arg("k_ptr"), py::arg("stream"), ReleaseGil());

    using W = Walk<T>;
    py::class_<W>(m, ("StepWalk" + bits).c_str(), "Reads such a record back to front for the discrete adjoint.")
        .def(py::init([](int device, int64_t batch, int64_t width, int64_t n_times, int degree, int64_t every,
                         int64_t states_per_chunk, uintptr_t times, uintptr_t table, uintptr_t offsets,
                         uintptr_t sample, uintptr_t state_chunks, uintptr_t grad_ys, uintptr_t grad_coefs) {
                 const WalkState<T> state{batch,
                                          width,
                                          n_times,
                                          every,
                                          states_per_chunk,
                                          degree,
                                          pointer<const double>(times),
                                          pointer<const StepRow>(table),
                                          pointer<const int64_t>(offsets),
                                          pointer<const int64_t>(sample),
                                          pointer<T* const>(state_chunks),
                                          pointer<const T>(grad_ys),
                                          pointer<const T>(grad_coefs)};
                 return W{state, &launches<T>(device >= 0), device};
             }),
             py::kw_only(), py::arg("device"), py::arg("batch"), py::arg("width"), py::arg("n_times"),
             py::arg("degree"), py::arg("every"), py::arg("states_per_chunk"), py::arg("times_ptr"),
             py::arg("table_ptr"), py::arg("offsets_ptr"), py::arg("sample_ptr"), py::arg("state_chunks_ptr"),
             py::arg("grad_ys_ptr"), py::arg("grad_coefs_ptr"))
        .def(
            "states",
            [](const W& w, int64_t j, int64_t n, uintptr_t y, uintptr_t stream) {
                w.run->states(w.state, j, n, pointer<T>(y), w.on(stream));
            },
            py::arg("j"), py::arg("n"), py::arg("y_ptr"), py::arg("stream"), ReleaseGil())
        .def(
            "steps",
            [](const W& w, int64_t j, int64_t n, uintptr_t t, uintptr_t h, uintptr_t stream) {
                w.run->steps(w.state, j, n, pointer<double>(t), pointer<double>(h), w.on(stream));
            },
            py::arg("j"), py::arg("n"), py::arg("t_ptr"), py::arg("h_ptr"), py::arg("stream"), ReleaseGil())
        .def(
            "mark_inside",
            [](const W& w, int64_t n, uintptr_t inside, uintptr_t stream) {
                w.run->mark_inside(w.state, n, pointer<bool>(inside), w.on(stream));
            },
            py::arg("n"), py::arg("inside_ptr"), py::arg("stream"), ReleaseGil())
        .def(
            "outputs",
            [](const W& w, int64_t j, int64_t n, uintptr_t p, uintptr_t g, uintptr_t stream) {
                w.run->outputs(w.state, j, n, pointer<T>(p), pointer<T>(g), w.on(stream));
            },
            py::arg("j"), py::arg("n"), py::arg("p_ptr"), py::arg("g_ptr"), py::arg("stream"), ReleaseGil());
}

template <class T>
void combine(int device, uintptr_t out, uintptr_t base, uintptr_t scale, const std::vector<double>& coefs,
             const std::vector<uintptr_t>& x, int64_t n, int64_t width, uintptr_t stream) {
    Terms<T> terms;
    for (size_t j = 0; j < coefs.size(); ++j) terms.add(coefs[j], pointer<const T>(x[j]));
    launches<T>(device >= 0)
        .combine(terms, pointer<const T>(base), pointer<const double>(scale), pointer<T>(out), n, width,
                 {device, pointer<void>(stream)});
}

void combine_any(int device, uintptr_t out, uintptr_t base, uintptr_t scale, const std::vector<double>& coefs,
                 const std::vector<uintptr_t>& x, int64_t n, int64_t width, bool is_double, uintptr_t stream) {
    if (coefs.size() != x.size()) throw std::invalid_argument("as many coefficients as terms are needed");
    if (coefs.size() > kMostStages) throw std::invalid_argument("at most 32 terms");
    (is_double ? combine<double> : combine<float>)(device, out, base, scale, coefs, x, n, width, stream);
}

}  // namespace

void bind_step(py::module_& m) {
    bind_for<float>(m, "32");
    bind_for<double>(m, "64");
    py::dict rows;
    rows["reals"] = static_cast<int>(kReals);
    rows["time"] = static_cast<int>(kTime);
    rows["wholes"] = static_cast<int>(kWholes);
    rows["status"] = static_cast<int>(kStatus);
    rows["n_accepted"] = static_cast<int>(kAccepted);
    rows["n_rejected"] = static_cast<int>(kRejected);
    rows["n_evals"] = static_cast<int>(kEvals);
    rows["counters"] = static_cast<int>(kCounters);
    rows["running"] = static_cast<int>(kRunning);
    rows["going_on"] = static_cast<int>(kGoingOn);
    rows["steps"] = static_cast<int>(kSteps);
    rows["states"] = static_cast<int>(kStates);
    m.attr("step_rows") = rows;
    m.def("step_chunks", &chunks_of, py::arg("width"), "Numbers of scratch memory that a lane of this width needs.");
    m.def("combine_on", &combine_any, py::kw_only(), py::arg("device"), py::arg("out_ptr"), py::arg("base_ptr"),
          py::arg("scale_ptr"), py::arg("coefs"), py::arg("ptrs"), py::arg("n"), py::arg("d"), py::arg("is_double"),
          py::arg("stream"), "As combine, on a GPU; device -1 runs the same text on the host.");
}

}  // namespace fastode
