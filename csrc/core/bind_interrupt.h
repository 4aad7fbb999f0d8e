// Signals of Python during a call that has released the interpreter's lock.
#pragma once

#include <pthread.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include <optional>
#include <utility>

#include "core/interrupt.h"
#include "core/without_gil.h"

namespace fastode {

// Also in the child of a fork, whatever thread called it.
inline bool on_main_thread() {
#if defined(__linux__)
    return syscall(SYS_gettid) == getpid();
#else
    return pthread_main_np() != 0;
#endif
}

// Runs f without the interpreter's lock. Python's handlers of signals run meanwhile, where this is the thread for them;
// the exception of one ends f and is raised here.
template <class F>
void interruptible(F&& f) {
    namespace py = pybind11;
    struct Signals {
        std::optional<py::error_already_set> error;
        std::optional<bool> here;

        static bool ask(void* context) {
            auto& self = *static_cast<Signals*>(context);
            // Without Python's lock: a daemon thread that asks for it while the interpreter ends never comes back.
            if (!self.here) self.here = on_main_thread();
            if (!*self.here) return false;
            const py::gil_scoped_acquire acquire;
            if (PyErr_CheckSignals() != 0) self.error.emplace();
            return self.error.has_value();
        }
    } signals;
    try {
        const WithoutGil released;
        const Interrupt interrupt(&Signals::ask, &signals);
        std::forward<F>(f)();
    } catch (...) {
        if (!signals.error) throw;  // Python ending this thread among it
    }
    if (signals.error) throw std::move(*signals.error);
}

}  // namespace fastode
