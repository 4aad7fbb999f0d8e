// What the files that bind kernels to Python share. Addresses of tensors come as integers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

#include "core/step_control.h"

namespace fastode {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Sizes of an array that a call is about: none is negative, and their product can be counted, in bytes too.
inline void check_sizes(std::initializer_list<int64_t> sizes) {
    constexpr int64_t kMost = int64_t{1} << 56;
    int64_t product = 1;
    for (const int64_t size : sizes) {
        if (size < 0) throw std::invalid_argument("a size must not be negative");
        if (size > 0 && product > kMost / size) throw std::invalid_argument("sizes whose product is above 2^56");
        if (size > 0) product *= size;
    }
}

// How many states a record keeps. The spacing may be doubled, and is multiplied by numbers of samples.
inline void check_record(int64_t every, int64_t max_bytes) {
    if (every < 0 || every > int64_t{1} << 40) throw std::invalid_argument("every must be between 0 and 2^40");
    if (max_bytes < 0) throw std::invalid_argument("max_bytes must not be negative");
}

// The constants of step-size control, by name (fastode/controllers.py).
inline StepControl make_control(const pybind11::dict& values) {
    const auto get = [&values](const char* name) { return values[name].cast<double>(); };
    return {get("exponent"),     get("b1"),         get("b2"),        get("b3"),       get("safety"),
            get("min_factor"),   get("max_factor"), get("min_step"),  get("max_step"), get("ratio_floor"),
            get("last_stretch"), get("min_ulps"),   get("to_outputs")};
}

}  // namespace fastode
