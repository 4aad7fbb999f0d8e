// Python's view of the processor, the instruction sets, the threads and the build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "build_config.h"
#include "core/cpu_features.h"
#include "core/isa.h"
#include "core/thread_pool.h"
#include "core/without_gil.h"

namespace py = pybind11;

namespace fastode {
namespace {

struct NamedIsa {
    const char* name;
    Isa isa;
};
constexpr NamedIsa kIsas[] = {{"generic", Isa::generic}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}};

std::vector<std::string> usable_isas() {
    std::vector<std::string> names;
    for (const auto& each : kIsas) {
        if (isa_usable(each.isa)) names.emplace_back(each.name);
    }
    return names;
}

std::string get_isa_name() {
    for (const auto& each : kIsas) {
        if (each.isa == active_isa()) return each.name;
    }
    throw std::logic_error("the active instruction set has no name");
}

void set_isa_name(const std::string& name) {
    for (const auto& each : kIsas) {
        if (name == each.name && isa_usable(each.isa)) return set_isa(each.isa);
    }
    std::string message = "instruction set '" + name + "' cannot be used here; usable:";
    for (const auto& usable : usable_isas()) message += " " + usable;
    throw std::invalid_argument(message);
}

py::list words(const std::string& text) { return py::str(text).attr("split")(); }

py::dict build_info() {
    py::dict info;
    info["compiler"] = FASTODE_BUILD_COMPILER;
    info["target"] = FASTODE_BUILD_TARGET;
    info["isas"] = words(FASTODE_BUILD_ISAS);
    info["cuda"] = static_cast<bool>(FASTODE_HAVE_CUDA);
    info["cuda_reason"] = FASTODE_BUILD_CUDA_REASON;
    info["cuda_archs"] = words(FASTODE_BUILD_CUDA_ARCHS);
    info["nvcc"] = FASTODE_BUILD_NVCC;
    return info;
}

// Runs the pool on chunks that only sleep and notes who did what; see the docstring.
std::vector<int> pool_trace(int64_t n_chunks, int64_t sleep_us, int64_t fail_at, int64_t inner) {
    if (n_chunks < 0 || inner < 1) throw std::invalid_argument("pool_trace: n_chunks >= 0 and inner >= 1 are needed");
    std::vector<int> slots(static_cast<size_t>(n_chunks * inner), -1);
    parallel_chunks(n_chunks, get_num_threads(), [&](int64_t chunk, int slot) {
        if (chunk == fail_at) throw std::runtime_error("chunk " + std::to_string(chunk) + " failed as asked");
        if (sleep_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(sleep_us));
        parallel_chunks(inner, get_num_threads(), [&](int64_t part, int inner_slot) {
            // A nested call runs in the thread that made it, which is slot 0 of that call.
            slots[static_cast<size_t>(chunk * inner + part)] = inner_slot == 0 ? slot : -2;
        });
    });
    return slots;
}

}  // namespace

void bind_core(py::module_& m) {
    m.def("build_info", &build_info, "How this extension was built, as a dict (see the type stub for the keys).");
    m.def("cpu_brand", &cpu_brand, "The processor's name as it states it, '' if it does not.");
    m.def(
        "cpu_features", [] { return cpu_features().names; },
        "Instruction set extensions of this machine that matter to fastode.");
    m.def("usable_isas", &usable_isas, "Instruction sets compiled in that this machine can run, in rising preference.");
    m.def("get_isa", &get_isa_name, "The instruction set in use.");
    m.def("set_isa", &set_isa_name, py::arg("name"), "Use this instruction set; ValueError if it cannot be used here.");
    m.def("get_num_threads", &get_num_threads, "How many threads a large call uses, the caller included.");
    m.def("set_num_threads", &set_num_threads, py::arg("n"), "Use n threads (1 to 1024) for large calls.");
    m.def("share_openmp", &share_openmp, py::arg("wanted"),
          "Whether to use the threads of torch's OpenMP runtime; returns whether they will be used.");
    m.def("stop_threads", &stop_threads, py::call_guard<WithoutGil>(),
          "End the worker threads; the next large call starts them again.");
    m.def("pool_trace", &pool_trace, py::arg("n_chunks"), py::arg("sleep_us") = 0, py::arg("fail_at") = -1,
          py::arg("inner") = 1, py::call_guard<WithoutGil>(),
          R"(Run n_chunks empty pieces of work and return, for each, which thread (0 = the caller) did it.

Each piece sleeps sleep_us microseconds and then makes a nested parallel call of `inner` parts; every part is an entry
of the result. The piece fail_at raises RuntimeError instead. For finding out what the thread pool does here.)");
    py::module_::import("atexit").attr("register")(m.attr("stop_threads"));
}

}  // namespace fastode
