// What the CUDA driver says about the GPUs of this machine. Plain C++: no CUDA headers needed to include it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastode {

struct CudaDevice {
    std::string name;
    int major = 0, minor = 0;  // compute capability
    int multiprocessors = 0;
    int64_t memory = 0;            // bytes on the card
    int64_t shared_per_block = 0;  // bytes of shared memory that one block can ask for
    int registers_per_multiprocessor = 0;
};

struct CudaDevices {
    int driver = 0;      // newest CUDA that the driver supports, as 13000 for 13.0; 0 without a driver
    int runtime = 0;     // CUDA that this extension was compiled with, likewise
    std::string reason;  // why there are no devices; '' if there are
    std::vector<CudaDevice> devices;
};

// Never throws and never makes a context: nothing is allocated on a GPU.
CudaDevices query_cuda_devices();

}  // namespace fastode
