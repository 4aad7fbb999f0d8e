// What all launches of kernels need; included by .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/step_launch.h"

namespace fastode {

inline void check_cuda(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline cudaStream_t stream_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.stream); }

// Makes a device current for the launches of a scope.
class OnDevice {
public:
    explicit OnDevice(const Stream& stream) : wanted_(stream.device) {
        check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != wanted_) check_cuda(cudaSetDevice(wanted_), "cudaSetDevice");
    }
    ~OnDevice() {
        if (before_ != wanted_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    int wanted_, before_ = 0;
};

}  // namespace fastode
