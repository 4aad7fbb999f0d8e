#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/thread_pool.h"
#include "core/without_gil.h"
#include "cpu/combine.h"

namespace py = pybind11;

namespace fastode {
namespace {

constexpr int64_t kThreadAbove = 32768;  // elements; below this waking a thread costs more than it brings
constexpr int64_t kChunk = 16384;        // elements of one piece of work

template <class T>
void copy_or_clear(T* out, const T* base, int64_t count) {
    if (base == nullptr) {
        std::fill_n(out, count, T(0));
    } else if (base != out) {
        std::memmove(out, base, static_cast<size_t>(count) * sizeof(T));
    }
}

template <class T>
void combine(uintptr_t out, uintptr_t base, uintptr_t scale, PyObject* const* coefs, PyObject* const* pointers, int m,
             int64_t n, int64_t d, void (*kernel)(const CombineArgs<T>&, int64_t, int64_t)) {
    CombineArgs<T> args;
    args.out = reinterpret_cast<T*>(out);
    args.base = reinterpret_cast<const T*>(base);
    args.scale = reinterpret_cast<const double*>(scale);
    args.d = d;
    args.n_terms = 0;
    for (int j = 0; j < m; ++j) {
        const double coef = PyFloat_AsDouble(coefs[j]);
        const auto pointer = static_cast<uintptr_t>(PyLong_AsUnsignedLongLong(pointers[j]));
        if (PyErr_Occurred()) throw py::error_already_set();
        if (coef == 0.0) continue;
        args.coef[args.n_terms] = static_cast<T>(coef);
        args.x[args.n_terms++] = reinterpret_cast<const T*>(pointer);
    }
    if (args.n_terms == 0) {
        copy_or_clear(args.out, args.base, n * d);
    } else if (n * d <= kThreadAbove) {
        kernel(args, 0, n);
    } else {
        const WithoutGil released;
        parallel_for(n, std::max<int64_t>(1, kChunk / d),
                     [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    }
}

void combine_dispatch(uintptr_t out, uintptr_t base, uintptr_t scale, const py::list& coefs, const py::list& pointers,
                      int64_t n, int64_t d, bool is_double) {
    const auto m = static_cast<int64_t>(coefs.size());
    if (static_cast<int64_t>(pointers.size()) != m) {
        throw std::invalid_argument("combine: " + std::to_string(m) + " coefficients but " +
                                    std::to_string(pointers.size()) + " pointers");
    }
    if (m > kMaxTerms) {
        throw std::invalid_argument("combine: at most " + std::to_string(kMaxTerms) + " terms, got " +
                                    std::to_string(m));
    }
    if (n < 0 || d < 0) throw std::invalid_argument("combine: n and d must not be negative");
    if (n == 0 || d == 0) return;
    PyObject* const* c = PySequence_Fast_ITEMS(coefs.ptr());
    PyObject* const* p = PySequence_Fast_ITEMS(pointers.ptr());
    const CombineKernels& kernels = combine_kernels();
    if (is_double) {
        combine<double>(out, base, scale, c, p, static_cast<int>(m), n, d, kernels.f64);
    } else {
        combine<float>(out, base, scale, c, p, static_cast<int>(m), n, d, kernels.f32);
    }
}

}  // namespace

void bind_combine(py::module_& m) {
    m.def("combine", &combine_dispatch, py::arg("out_ptr"), py::arg("base_ptr"), py::arg("scale_ptr"), py::arg("coefs"),
          py::arg("ptrs"), py::arg("n"), py::arg("d"), py::arg("is_double"),
          R"(out[r, :] = base[r, :] + scale[r] * sum_j coefs[j] * x_j[r, :] for n contiguous rows of d elements.

Pointers are integers; 0 for base means zero, 0 for scale means one. scale is float64, the rest float32 or float64
(is_double). Coefficients are rounded to the element type once, terms are added in the order given, and those with a
zero coefficient are not read. A row's result does not depend on the other rows. out may be base or one of the x_j.)");
}

}  // namespace fastode
