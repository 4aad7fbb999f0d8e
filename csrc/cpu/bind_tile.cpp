// Python's view of the fused `cpu` backend: TileProgram32/64, TileMethod, TileControl.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/bind_interrupt.h"
#include "core/bind_tools.h"
#include "core/pages.h"
#include "core/without_gil.h"
#include "cpu/tile/backward.h"
#include "cpu/tile/dense.h"
#include "cpu/tile/forward.h"
#include "cpu/tile/program.h"
#include "cpu/tile/record.h"

namespace py = pybind11;

namespace fastode {
namespace {

constexpr int kColumns = 24;

template <class X>
using Array = py::array_t<X, py::array::c_style | py::array::forcecast>;
using Pointers = std::vector<uintptr_t>;
using Words = py::array_t<int64_t, py::array::c_style>;
using Code = std::pair<Array<int32_t>, Array<double>>;

template <class T>
std::vector<T*> pointers(const Pointers& addresses) {
    std::vector<T*> result(addresses.size());
    for (size_t i = 0; i < addresses.size(); ++i) result[i] = pointer<T>(addresses[i]);
    return result;
}

TileCode read_code(const Code& code, const char* name) {
    const auto& [rows, immediates] = code;
    const auto fail = [name](const std::string& what) { throw std::invalid_argument(std::string(name) + ": " + what); };
    const py::ssize_t n = rows.ndim() == 2 ? rows.shape(0) : 0;
    if (rows.size() > 0 && (rows.ndim() != 2 || rows.shape(1) != kColumns)) fail("instructions must be (n, 24)");
    if (n > 0 && (immediates.ndim() != 2 || immediates.shape(0) != n || immediates.shape(1) != 2)) {
        fail("immediates must be (n, 2)");
    }
    TileCode result(static_cast<size_t>(n));
    for (py::ssize_t i = 0; i < n; ++i) {
        const int32_t* r = rows.data(i, 0);
        const auto operand = [r](int at) { return TileOperand{r[at], r[at + 1], r[at + 2], r[at + 3]}; };
        result[static_cast<size_t>(i)] = {r[0],
                                          r[1],
                                          r[2],
                                          r[3],
                                          operand(4),
                                          operand(8),
                                          operand(12),
                                          operand(16),
                                          r[20],
                                          *immediates.data(i, 0),
                                          *immediates.data(i, 1)};
    }
    return result;
}

std::vector<TilePack> read_pack(const Array<int64_t>& rows, const char* name) {
    if (rows.size() == 0) return {};
    if (rows.ndim() != 2 || rows.shape(1) != 7) throw std::invalid_argument(std::string(name) + " must be (m, 7)");
    std::vector<TilePack> result;
    for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
        const int64_t* r = rows.data(i, 0);
        result.push_back({r[0], r[1], r[2], r[3], r[4], r[5], r[6]});
    }
    return result;
}

// The dtype is a property of the Python class: one kind of program in C++ serves both.
template <class T>
struct Program : TileProgram {};

template <class T>
void check_leaves(const Program<T>& p, const Pointers& shared, const Pointers& params,
                  const std::vector<int64_t>& strides) {
    if (shared.size() != p.shared_sizes.size() || params.size() != p.param_sizes.size() ||
        strides.size() != params.size()) {
        throw std::invalid_argument("the program has " + std::to_string(p.shared_sizes.size()) + " shared and " +
                                    std::to_string(p.param_sizes.size()) + " per-sample leaves");
    }
}
template <class T>
TileLeaves<T> make_leaves(const Program<T>& p, const Pointers& shared, const Pointers& params,
                          const std::vector<int64_t>& strides) {
    check_leaves(p, shared, params, strides);
    TileLeaves<T> leaves;
    for (const uintptr_t address : shared) leaves.shared.push_back(pointer<const T>(address));
    for (const uintptr_t address : params) leaves.params.push_back(pointer<const T>(address));
    leaves.strides = strides;
    return leaves;
}
template <class T>
TileGradients<T> make_gradients(const Program<T>& p, uintptr_t y0, const Pointers& shared, const Pointers& params) {
    if (p.reverse.empty() && p.dim > 0) throw std::invalid_argument("this program has no reverse routine");
    if (shared.size() != p.shared_sizes.size() || params.size() != p.param_sizes.size()) {
        throw std::invalid_argument("one pointer for the gradient of each leaf is needed, 0 where it is not wanted");
    }
    return {pointer<T>(y0), pointers<T>(shared), pointers<T>(params)};
}

void check_counts(const TileProgram& p, int64_t batch, int64_t n_times) {
    check_sizes({n_times, batch, p.dim});
    if (n_times < 1) throw std::invalid_argument("at least one time is needed");
}

TileMethod make_method(std::vector<double> c, std::vector<double> a, std::vector<double> b, std::vector<double> e,
                       std::vector<double> q) {
    const size_t s = c.size();
    if (s < 2 || s > static_cast<size_t>(kMaxStages)) throw std::invalid_argument("a method needs 2 to 32 stages");
    if (a.size() != s * s || b.size() != s || (!e.empty() && e.size() != s) || q.size() % s != 0 ||
        q.size() / s > static_cast<size_t>(kMaxStages)) {
        throw std::invalid_argument("the coefficients of a method with " + std::to_string(s) + " stages do not fit");
    }
    TileMethod method;
    method.s = static_cast<int>(s);
    method.degree = static_cast<int>(q.size() / s);
    method.c = std::move(c);
    method.a = std::move(a);
    method.b = std::move(b);
    method.e = std::move(e);
    method.q = std::move(q);
    return method;
}

py::dict tile_ops() {
    py::dict ops;
#define FASTODE_OP(name) ops[#name] = static_cast<int>(op_##name);
    FASTODE_TILE_OPS(FASTODE_OP)
#undef FASTODE_OP
    return ops;
}

template <class T>
std::unique_ptr<Program<T>> make_program(int64_t dim, int64_t lanes, int64_t backward_lanes, const Code& forward,
                                         const Code& forward_keep, const Code& reverse, const Code& accumulate,
                                         const Array<int32_t>& maps, int64_t n_tmp, int64_t n_tmp_keep, int64_t n_adj,
                                         const Array<int64_t>& shared_pack, const Array<int64_t>& param_pack,
                                         std::vector<int64_t> shared_sizes, std::vector<int64_t> param_sizes,
                                         int64_t n_shared, int64_t n_param) {
    auto p = std::make_unique<Program<T>>();
    p->dim = dim;
    p->lanes = lanes;
    p->backward_lanes = backward_lanes;
    p->forward = read_code(forward, "forward");
    p->forward_keep = read_code(forward_keep, "forward_keep");
    p->reverse = read_code(reverse, "reverse");
    p->accumulate = read_code(accumulate, "accumulate");
    p->maps.assign(maps.data(), maps.data() + maps.size());
    p->n_tmp = n_tmp;
    p->n_tmp_keep = n_tmp_keep;
    p->n_adj = n_adj;
    p->shared_pack = read_pack(shared_pack, "shared_pack");
    p->param_pack = read_pack(param_pack, "param_pack");
    for (const int64_t size : shared_sizes) p->n_gshared += size;
    for (const int64_t size : param_sizes) p->n_gparam += size;
    p->shared_sizes = std::move(shared_sizes);
    p->param_sizes = std::move(param_sizes);
    p->n_shared = n_shared;
    p->n_param = n_param;
    p->check();
    return p;
}

// A record in one piece of memory, by words of 8 bytes: this header, offsets (batch + 1), state_offsets (batch + 1),
// table (n_steps, 3), states (n_states, dim), filled up with zeros to a whole word. fastode/backends/cpu/record.py.
struct RecordHeader {
    int64_t n_steps, n_states, every, replays;  // replays: whether a solve that is longer would lack states
};
constexpr int64_t kHeaderWords = sizeof(RecordHeader) / sizeof(int64_t);
constexpr int64_t kStepColumns = 3;

template <class T>
int64_t record_words(const RecordHeader& header, int64_t batch, int64_t dim) {
    constexpr int64_t kPerWord = sizeof(int64_t) / sizeof(T);
    const int64_t states = (header.n_states * dim + kPerWord - 1) / kPerWord;
    return kHeaderWords + 2 * (batch + 1) + kStepColumns * header.n_steps + states;
}

template <class T>
struct RecordParts {
    RecordParts(int64_t* words, const RecordHeader& header, int64_t batch)
        : offsets(words + kHeaderWords),
          state_offsets(offsets + batch + 1),
          table(reinterpret_cast<double*>(state_offsets + batch + 1)),
          states(reinterpret_cast<T*>(table + kStepColumns * header.n_steps)) {}

    int64_t *offsets, *state_offsets;
    double* table;
    T* states;
};

// Uninitialised; large ones in pages that are used again.
Words make_words(int64_t n) {
    constexpr int64_t kLarge = 1 << 15;
    if (n < kLarge) return Words(n);
    auto pages = std::make_unique<Pages>(static_cast<size_t>(n) * sizeof(int64_t));
    auto* const at = static_cast<int64_t*>(pages->data());
    const py::capsule owner(pages.get(), [](void* p) { delete static_cast<Pages*>(p); });
    pages.release();
    return Words(n, at, owner);
}

template <class T>
Words write_record(const TileRecord<T>& record, int64_t dim) {
    const RecordHeader header{record.steps(), record.states(), record.every(), record.replays()};
    const int64_t n_words = record_words<T>(header, record.batch(), dim);
    Words words = make_words(n_words);
    int64_t* const at = words.mutable_data();
    const WithoutGil released;
    at[n_words - 1] = 0;
    std::memcpy(at, &header, sizeof header);
    const RecordParts<T> parts(at, header, record.batch());
    record.write(parts.offsets, parts.table, parts.state_offsets, parts.states);
    return words;
}

// Rows of the table that says what became of each sample.
enum : int64_t {
    row_accepted,
    row_rejected,
    row_evals,
    row_status,
    row_reached,
    row_last_step,
    row_last_ratio,
    kOutcomeRows
};

template <class T>
py::tuple solve(const Program<T>& p, const TileMethod& method, const StepControl& control, int64_t batch,
                int64_t n_times, uintptr_t times, int64_t time_row_stride, int64_t time_sample_stride, uintptr_t y0,
                const Pointers& shared, const Pointers& params, const std::vector<int64_t>& strides, uintptr_t rtol,
                uintptr_t atol, uintptr_t step_size, double first_step, int64_t max_steps, uintptr_t ys, uintptr_t k1,
                int64_t every, int64_t max_bytes, int threads) {
    check_counts(p, batch, n_times);
    check_record(every, max_bytes);
    if (step_size == 0 && method.e.empty()) {
        throw std::invalid_argument("adaptive steps need a method with an error estimate");
    }
    Words outcome(std::vector<py::ssize_t>{kOutcomeRows, batch});
    int64_t* const rows = outcome.mutable_data();
    int64_t* const status = rows + row_status * batch;
    const TileSolve<T> spec{batch,
                            n_times,
                            pointer<const double>(times),
                            time_row_stride,
                            time_sample_stride,
                            pointer<const T>(y0),
                            make_leaves(p, shared, params, strides),
                            pointer<const T>(rtol),
                            pointer<const T>(atol),
                            pointer<const double>(step_size),
                            first_step,
                            max_steps,
                            pointer<T>(ys),
                            status,
                            rows + row_accepted * batch,
                            rows + row_rejected * batch,
                            rows + row_evals * batch,
                            reinterpret_cast<double*>(rows + row_reached * batch),
                            reinterpret_cast<double*>(rows + row_last_step * batch),
                            reinterpret_cast<double*>(rows + row_last_ratio * batch),
                            pointer<T>(k1),
                            threads};
    std::optional<TileRecord<T>> record;
    bool failed = false;
    interruptible([&] {
        if (every > 0) record.emplace(batch, p.dim, every, max_bytes, std::max(1, threads));
        tile_solve(p, method, control, spec, record ? &*record : nullptr);
        failed = std::any_of(status, status + batch, [](int64_t s) { return s != 0; });
    });
    if (!record) return py::make_tuple(outcome, failed, py::none());
    return py::make_tuple(outcome, failed, write_record(*record, p.dim));
}

template <class T>
RecordHeader header_of(const Words& record, int64_t batch, int64_t dim) {
    RecordHeader header{0, 0, 0, 0};
    if (record.size() >= kHeaderWords) std::memcpy(&header, record.data(), sizeof header);
    if (header.every < 1 || record_words<T>(header, batch, dim) != record.size()) {
        throw std::invalid_argument("this is no record of a solve of this program for so many samples");
    }
    return header;
}

template <class T>
py::tuple dense(const Program<T>& p, const TileMethod& method, int64_t batch, const Pointers& shared,
                const Pointers& params, const std::vector<int64_t>& strides, const Words& record, uintptr_t reached,
                int threads) {
    check_counts(p, batch, 1);
    const RecordHeader header = header_of<T>(record, batch, p.dim);
    if (header.n_states != header.n_steps) throw std::invalid_argument("the states of all steps are needed");
    const RecordParts<T> parts(const_cast<int64_t*>(record.data()), header, batch);  // only read
    int64_t longest = 0;
    for (int64_t b = 0; b < batch; ++b) longest = std::max(longest, parts.offsets[b + 1] - parts.offsets[b]);
    using Shape = std::vector<py::ssize_t>;
    py::array_t<double> start(Shape{longest, batch}), size(Shape{longest, batch});
    py::array_t<int64_t> rows(Shape{longest, batch});
    py::array_t<T> coefs(Shape{header.n_steps, method.degree + 1, p.dim});
    const TileDense<T> spec{batch,
                            longest,
                            parts.offsets,
                            parts.table,
                            parts.states,
                            pointer<const double>(reached),
                            make_leaves(p, shared, params, strides),
                            coefs.mutable_data(),
                            start.mutable_data(),
                            size.mutable_data(),
                            rows.mutable_data(),
                            threads};
    interruptible([&] { tile_dense(p, method, spec); });
    return py::make_tuple(start, size, rows, coefs);
}

template <class T>
void solve_adjoint(const Program<T>& p, const TileMethod& method, int64_t batch, int64_t n_times, uintptr_t times,
                   int64_t time_row_stride, int64_t time_sample_stride, const Pointers& shared, const Pointers& params,
                   const std::vector<int64_t>& strides, const Words& record, uintptr_t solved, uintptr_t grad_ys,
                   uintptr_t grad_y0, const Pointers& grad_shared, const Pointers& grad_params, int threads) {
    check_counts(p, batch, n_times);
    const RecordHeader header = header_of<T>(record, batch, p.dim);
    const RecordParts<T> parts(const_cast<int64_t*>(record.data()), header, batch);  // only read
    const TileAdjoint<T> spec{batch,
                              n_times,
                              pointer<const double>(times),
                              time_row_stride,
                              time_sample_stride,
                              make_leaves(p, shared, params, strides),
                              parts.offsets,
                              parts.table,
                              parts.state_offsets,
                              parts.states,
                              header.every,
                              pointer<const uint8_t>(solved),
                              pointer<const T>(grad_ys),
                              make_gradients(p, grad_y0, grad_shared, grad_params),
                              threads};
    interruptible([&] { tile_adjoint(p, method, spec); });
}

template <class T>
void bind_program(py::module_& m, const std::string& bits) {
    py::class_<Program<T>>(m, ("TileProgram" + bits).c_str(), "A vector field as instructions over a tile of samples.")
        .def(py::init(&make_program<T>), py::kw_only(), py::arg("dim"), py::arg("lanes"), py::arg("backward_lanes"),
             py::arg("forward"), py::arg("forward_keep"), py::arg("reverse"), py::arg("accumulate"), py::arg("maps"),
             py::arg("n_tmp"), py::arg("n_tmp_keep"), py::arg("n_adj"), py::arg("shared_pack"), py::arg("param_pack"),
             py::arg("shared_sizes"), py::arg("param_sizes"), py::arg("n_shared"), py::arg("n_param"))
        .def(
            "evaluate",
            [](const Program<T>& p, int64_t batch, uintptr_t t, uintptr_t y, const Pointers& shared,
               const Pointers& params, const std::vector<int64_t>& strides, uintptr_t out, int threads) {
                check_counts(p, batch, 1);
                const TileLeaves<T> leaves = make_leaves(p, shared, params, strides);
                interruptible([&] {
                    tile_evaluate(p, batch, pointer<const double>(t), pointer<const T>(y), leaves, pointer<T>(out),
                                  threads);
                });
            },
            py::arg("batch"), py::arg("t_ptr"), py::arg("y_ptr"), py::arg("shared_ptrs"), py::arg("param_ptrs"),
            py::arg("param_strides"), py::arg("out_ptr"), py::arg("threads"))
        .def(
            "dense", &dense<T>, py::arg("method"), py::arg("batch"), py::arg("shared_ptrs"), py::arg("param_ptrs"),
            py::arg("param_strides"), py::arg("record"), py::arg("reached_ptr"), py::arg("threads"),
            R"(The polynomials between the ends of recorded steps: start, size, rows (N, B) and coefs (R, degree + 1, D).

record: of a solve of the same program with every=1; see fastode.solution.DenseOutput.)")
        .def(
            "vjp",
            [](const Program<T>& p, int64_t batch, uintptr_t t, uintptr_t y, uintptr_t g, const Pointers& shared,
               const Pointers& params, const std::vector<int64_t>& strides, uintptr_t grad_y,
               const Pointers& grad_shared, const Pointers& grad_params, int threads) {
                check_counts(p, batch, 1);
                const TileLeaves<T> leaves = make_leaves(p, shared, params, strides);
                const TileGradients<T> gradients = make_gradients(p, grad_y, grad_shared, grad_params);
                interruptible([&] {
                    tile_vjp(p, batch, pointer<const double>(t), pointer<const T>(y), pointer<const T>(g), leaves,
                             gradients, threads);
                });
            },
            py::arg("batch"), py::arg("t_ptr"), py::arg("y_ptr"), py::arg("g_ptr"), py::arg("shared_ptrs"),
            py::arg("param_ptrs"), py::arg("param_strides"), py::arg("grad_y_ptr"), py::arg("grad_shared_ptrs"),
            py::arg("grad_param_ptrs"), py::arg("threads"))
        .def("solve", &solve<T>, py::arg("method"), py::arg("control"), py::arg("batch"), py::arg("n_times"),
             py::arg("times_ptr"), py::arg("time_row_stride"), py::arg("time_sample_stride"), py::arg("y0_ptr"),
             py::arg("shared_ptrs"), py::arg("param_ptrs"), py::arg("param_strides"), py::arg("rtol_ptr"),
             py::arg("atol_ptr"), py::arg("step_size_ptr"), py::arg("first_step"), py::arg("max_steps"),
             py::arg("ys_ptr"), py::arg("k1_ptr"), py::arg("every"), py::arg("max_bytes"), py::arg("threads"))
        .def("solve_adjoint", &solve_adjoint<T>, py::arg("method"), py::arg("batch"), py::arg("n_times"),
             py::arg("times_ptr"), py::arg("time_row_stride"), py::arg("time_sample_stride"), py::arg("shared_ptrs"),
             py::arg("param_ptrs"), py::arg("param_strides"), py::arg("record"), py::arg("solved_ptr"),
             py::arg("grad_ys_ptr"), py::arg("grad_y0_ptr"), py::arg("grad_shared_ptrs"), py::arg("grad_param_ptrs"),
             py::arg("threads"));
}

}  // namespace

void bind_tile(py::module_& m) {
    m.def("tile_ops", &tile_ops, "The number of each operation of a tile program.");
    py::class_<TileMethod>(m, "TileMethod", "A Runge-Kutta method in first-same-as-last form, as flat lists.")
        .def(py::init(&make_method), py::arg("c"), py::arg("a"), py::arg("b"), py::arg("e"), py::arg("q"));
    py::class_<StepControl>(m, "TileControl", "The constants of step-size control.")
        .def(py::init(&make_control), py::arg("values"));
    bind_program<float>(m, "32");
    bind_program<double>(m, "64");
}

}  // namespace fastode
