// What the files that bind kernels to Python share. Addresses of tensors come as integers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/step_control.h"

namespace fastode {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// The constants of step-size control, by name (fastode/controllers.py).
inline StepControl make_control(const pybind11::dict& values) {
    const auto get = [&values](const char* name) { return values[name].cast<double>(); };
    return {get("exponent"), get("b1"),          get("b2"),           get("b3"),
            get("safety"),   get("min_factor"),  get("max_factor"),   get("min_step"),
            get("max_step"), get("ratio_floor"), get("last_stretch"), get("min_ulps")};
}

}  // namespace fastode
