// Python's view of whole solves with per-sample weight matrices: NetMethod32/64, net_forward, net_backward.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core/bind_tools.h"
#include "core/without_gil.h"
#include "cuda/net_dispatch.h"

namespace py = pybind11;

namespace fastode {
namespace {

template <class T>
const NetLaunches<T>& launches(bool device) {
    if constexpr (std::is_same_v<T, float>) {
        return for_device(device, host_net_launches_f32, FASTODE_WITH_CUDA(cuda_net_launches_f32));
    } else {
        return for_device(device, host_net_launches_f64, FASTODE_WITH_CUDA(cuda_net_launches_f64));
    }
}

// a (s, s), b (s), e (s) or empty, q (s, degree), row-major.
template <class T>
NetMethod<T> make_method(const std::vector<double>& a, const std::vector<double>& b, const std::vector<double>& e,
                         const std::vector<double>& q) {
    NetMethod<T> method{};
    const size_t s = b.size();
    if (s < 2 || s > kNetStages || a.size() != s * s || (!e.empty() && e.size() != s) || q.size() % s != 0 ||
        q.size() / s > kNetDegree) {
        throw std::invalid_argument("the coefficients of the method do not fit");
    }
    method.s = static_cast<int>(s);
    method.degree = static_cast<int>(q.size() / s);
    method.adaptive = !e.empty();
    for (size_t i = 0; i < s; ++i) {
        for (size_t j = 0; j < i; ++j) method.a[i * (i - 1) / 2 + j] = static_cast<T>(a[i * s + j]);
        method.b[i] = static_cast<T>(b[i]);
        method.e[i] = e.empty() ? T(0) : static_cast<T>(e[i]);
        for (size_t m = 0; m < q.size() / s; ++m) method.q[i][m] = q[i * (q.size() / s) + m];
    }
    return method;
}

// (rows, cols, activation, alpha, weight, its stride, row stride, column stride, bias, its stride, step, gradients of
// both and their strides)
using LayerTuple = std::tuple<int, int, int, double, uintptr_t, int64_t, int, int, uintptr_t, int64_t, int, uintptr_t,
                              int64_t, uintptr_t, int64_t>;
// (first page, table, states, before) of each chunk; the first page after the last is the number of pages.
using ChunkTuple = std::tuple<int64_t, uintptr_t, uintptr_t, uintptr_t>;

template <class T>
int set_layers(NetLayer<T>* layers, const std::vector<LayerTuple>& given) {
    if (given.empty() || given.size() > kNetLayers) throw std::invalid_argument("one or two layers");
    for (size_t l = 0; l < given.size(); ++l) {
        const auto& [rows, cols, activation, alpha, weight, weight_stride, row_stride, col_stride, bias, bias_stride,
                     bias_step, grad_weight, grad_weight_stride, grad_bias, grad_bias_stride] = given[l];
        if (rows < 1 || cols < 1 || rows > kNetWidest || cols > kNetWidest) {
            throw std::invalid_argument("no kernel for matrices of this size");
        }
        layers[l] = {rows,
                     cols,
                     static_cast<Activation>(activation),
                     static_cast<T>(alpha),
                     pointer<const T>(weight),
                     weight_stride,
                     row_stride,
                     col_stride,
                     pointer<const T>(bias),
                     bias_stride,
                     bias_step,
                     pointer<T>(grad_weight),
                     pointer<T>(grad_bias),
                     grad_weight_stride,
                     grad_bias_stride};
    }
    return static_cast<int>(given.size());
}

template <class T>
void set_pages(NetPages<T>& pages, const std::vector<ChunkTuple>& chunks, int64_t total, int per_page, int every,
               uintptr_t taken, uintptr_t last) {
    if (chunks.size() > kNetChunks) throw std::invalid_argument("too many chunks of pages");
    if (per_page < 1 || every < 1) throw std::invalid_argument("a page must have room for a step");
    check_sizes({total, per_page, every, 3});
    pages = {};
    pages.n_chunks = static_cast<int>(chunks.size());
    pages.every = every;
    pages.per_page = per_page;
    for (size_t c = 0; c < chunks.size(); ++c) {
        pages.first[c] = std::get<0>(chunks[c]);
        pages.table[c] = pointer<double>(std::get<1>(chunks[c]));
        pages.states[c] = pointer<T>(std::get<2>(chunks[c]));
        pages.before[c] = pointer<int64_t>(std::get<3>(chunks[c]));
    }
    pages.first[chunks.size()] = total;
    pages.taken = pointer<int64_t>(taken);
    pages.last = pointer<int64_t>(last);
}

template <class T>
void bind_for(py::module_& m, const std::string& bits) {
    py::class_<NetMethod<T>>(m, ("NetMethod" + bits).c_str(), "A Runge-Kutta method as kernels read it.")
        .def(py::init(&make_method<T>), py::kw_only(), py::arg("a"), py::arg("b"), py::arg("e"), py::arg("q"))
        .def(
            "forward",
            [](const NetMethod<T>& method, int device, uintptr_t stream, int64_t batch, int width, int64_t n_times,
               uintptr_t times, int64_t time_row_stride, int64_t time_sample_stride, uintptr_t step_size,
               double first_step, int64_t max_steps, uintptr_t y0, uintptr_t rtol, uintptr_t atol, uintptr_t ys,
               uintptr_t k1, uintptr_t y, uintptr_t real, uintptr_t whole, uintptr_t queue, int64_t n_queue,
               const py::dict& control, const std::vector<LayerTuple>& layers, bool recorded,
               const std::vector<ChunkTuple>& chunks, int64_t pages, int per_page, int every, uintptr_t taken,
               uintptr_t last) {
                check_sizes({n_times, batch, width});
                NetSolve<T> solve{};
                solve.batch = batch;
                solve.width = width;
                solve.n_times = n_times;
                solve.max_steps = max_steps;
                solve.first_step = first_step;
                solve.times = pointer<const double>(times);
                solve.time_row_stride = time_row_stride;
                solve.time_sample_stride = time_sample_stride;
                solve.step_size = pointer<const double>(step_size);
                solve.y0 = pointer<const T>(y0);
                solve.rtol = pointer<const T>(rtol);
                solve.atol = pointer<const T>(atol);
                solve.ys = pointer<T>(ys);
                solve.k1 = pointer<T>(k1);
                solve.y = pointer<T>(y);
                solve.real = pointer<double>(real);
                solve.whole = pointer<int64_t>(whole);
                solve.queue = pointer<const int64_t>(queue);
                solve.n_queue = n_queue;
                solve.recorded = recorded;
                solve.control = make_control(control);
                solve.method = method;
                solve.layers = set_layers(solve.layer, layers);
                set_pages(solve.pages, chunks, pages, per_page, every, taken, last);
                const NetLaunches<T>& run = launches<T>(device >= 0);
                const WithoutGil released;
                run.forward(solve, {device, pointer<void>(stream)});
            },
            py::kw_only(), py::arg("device"), py::arg("stream"), py::arg("batch"), py::arg("width"), py::arg("n_times"),
            py::arg("times_ptr"), py::arg("time_row_stride"), py::arg("time_sample_stride"), py::arg("step_size_ptr"),
            py::arg("first_step"), py::arg("max_steps"), py::arg("y0_ptr"), py::arg("rtol_ptr"), py::arg("atol_ptr"),
            py::arg("ys_ptr"), py::arg("k1_ptr"), py::arg("y_ptr"), py::arg("real_ptr"), py::arg("whole_ptr"),
            py::arg("queue_ptr"), py::arg("n_queue"), py::arg("control"), py::arg("layers"), py::arg("recorded"),
            py::arg("chunks"), py::arg("pages"), py::arg("per_page"), py::arg("every"), py::arg("taken_ptr"),
            py::arg("last_ptr"))
        .def(
            "backward",
            [](const NetMethod<T>& method, int device, uintptr_t stream, int64_t batch, int width, int64_t n_times,
               uintptr_t times, int64_t time_row_stride, int64_t time_sample_stride, uintptr_t whole, uintptr_t grad_ys,
               uintptr_t grad_y0, uintptr_t scratch, const std::vector<LayerTuple>& layers,
               const std::vector<ChunkTuple>& chunks, int64_t pages, int per_page, int every, uintptr_t last) {
                NetAdjoint<T> adjoint{};
                adjoint.batch = batch;
                adjoint.width = width;
                adjoint.n_times = n_times;
                adjoint.times = pointer<const double>(times);
                adjoint.time_row_stride = time_row_stride;
                adjoint.time_sample_stride = time_sample_stride;
                adjoint.whole = pointer<const int64_t>(whole);
                adjoint.grad_ys = pointer<const T>(grad_ys);
                adjoint.grad_y0 = pointer<T>(grad_y0);
                adjoint.scratch = pointer<T>(scratch);
                adjoint.method = method;
                adjoint.layers = set_layers(adjoint.layer, layers);
                set_pages(adjoint.pages, chunks, pages, per_page, every, 0, last);
                const NetLaunches<T>& run = launches<T>(device >= 0);
                const WithoutGil released;
                run.backward(adjoint, {device, pointer<void>(stream)});
            },
            py::kw_only(), py::arg("device"), py::arg("stream"), py::arg("batch"), py::arg("width"), py::arg("n_times"),
            py::arg("times_ptr"), py::arg("time_row_stride"), py::arg("time_sample_stride"), py::arg("whole_ptr"),
            py::arg("grad_ys_ptr"), py::arg("grad_y0_ptr"), py::arg("scratch_ptr"), py::arg("layers"),
            py::arg("chunks"), py::arg("pages"), py::arg("per_page"), py::arg("every"), py::arg("last_ptr"))
        .def(
            "groups",
            [](const NetMethod<T>& method, int device, int widest, int layers, int64_t batch) {
                return launches<T>(device >= 0)
                    .groups(net_dimension(widest), layers, method.s, batch, {device, nullptr});
            },
            py::kw_only(), py::arg("device"), py::arg("widest"), py::arg("layers"), py::arg("batch"),
            "How many groups of threads an adjoint has, each of which needs scratch memory.")
        .def(
            "shared_bytes",
            [](const NetMethod<T>& method, int widest, int layers, bool adjoint) {
                int64_t bytes = 0;
                with_shape<T>(net_dimension(widest), layers, [&](auto shape) {
                    using Shape = decltype(shape);
                    const int each = adjoint ? Shape::adjoint_shared(method.s) : Shape::forward_shared(method.s);
                    bytes = static_cast<int64_t>(each) * Shape::kGroups * static_cast<int64_t>(sizeof(T));
                });
                return bytes;
            },
            py::kw_only(), py::arg("widest"), py::arg("layers"), py::arg("adjoint"), "Shared memory of a block.");
}

}  // namespace

void bind_net(py::module_& m) {
    bind_for<float>(m, "32");
    bind_for<double>(m, "64");
    m.def(
        "net_supported", [](int widest, int layers) { return net_supported(net_dimension(widest), layers); },
        py::kw_only(), py::arg("widest"), py::arg("layers"), "Whether there are kernels for matrices of this size.");
    py::dict rows;
    rows["reals"] = static_cast<int>(kNetReals);
    rows["time"] = static_cast<int>(kNetTime);
    rows["wholes"] = static_cast<int>(kNetWholes);
    rows["status"] = static_cast<int>(kNetStatus);
    rows["n_accepted"] = static_cast<int>(kNetAccepted);
    rows["n_rejected"] = static_cast<int>(kNetRejected);
    rows["n_evals"] = static_cast<int>(kNetEvals);
    rows["page"] = kNetUsualPage;
    rows["chunks"] = kNetChunks;
    rows["stages"] = kNetStages;
    rows["degree"] = kNetDegree;
    rows["widest"] = kNetWidest;
    m.attr("net_rows") = rows;
    py::list activations;
    for (const char* name : {"identity", "tanh", "sigmoid", "relu", "sin", "softplus", "silu", "elu", "gelu"}) {
        activations.append(name);
    }
    m.attr("net_activations") = activations;
}

}  // namespace fastode
