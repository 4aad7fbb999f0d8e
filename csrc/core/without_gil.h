// Python's lock is let go for the time of a scope.
#pragma once

#include <Python.h>

namespace fastode {

// As py::gil_scoped_release, for threads that may outlive the interpreter. A thread that asks for the lock of an
// interpreter that has ended is ended by Python, which unwinds its stack: through a destructor that must not throw, as
// pybind11's is, this would end the whole process.
class WithoutGil {
public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() noexcept(false) { PyEval_RestoreThread(state_); }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

private:
    PyThreadState* state_;
};

}  // namespace fastode
