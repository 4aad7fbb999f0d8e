// Signals of Python during a call that has released the interpreter's lock.
#pragma once

#include <pybind11/pybind11.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <optional>
#include <utility>

#include "core/interrupt.h"

namespace fastode {

// Runs f without the interpreter's lock. Python's handlers of signals run meanwhile, where this is the thread for them;
// the exception of one ends f and is raised here.
template <class F>
void interruptible(F&& f) {
    namespace py = pybind11;
    struct Signals {
        std::optional<py::error_already_set> error;
        std::optional<bool> on_main_thread;

        static bool ask(void* context) {
            auto& self = *static_cast<Signals*>(context);
            // Also in the child of a fork, whatever thread called it. Known without Python's lock: a daemon thread that
            // asks for it while the interpreter ends never comes back.
            if (!self.on_main_thread) self.on_main_thread = syscall(SYS_gettid) == getpid();
            if (!*self.on_main_thread) return false;
            const py::gil_scoped_acquire acquire;
            if (PyErr_CheckSignals() != 0) self.error.emplace();
            return self.error.has_value();
        }
    } signals;
    try {
        const py::gil_scoped_release release;
        const Interrupt interrupt(&Signals::ask, &signals);
        std::forward<F>(f)();
    } catch (...) {
        if (!signals.error) throw;
    }
    if (signals.error) throw std::move(*signals.error);
}

}  // namespace fastode
