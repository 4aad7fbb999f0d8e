#include <cuda_runtime_api.h>

#include "cuda/device_info.h"

namespace fastode {
namespace {

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

}  // namespace

CudaDevices query_cuda_devices() {
    CudaDevices found;
    cudaRuntimeGetVersion(&found.runtime);
    if (cudaDriverGetVersion(&found.driver) != cudaSuccess) found.driver = 0;
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        cudaGetLastError();  // clear it, so that it does not surface in an unrelated later call
        found.reason = found.driver == 0 ? "no NVIDIA driver is installed" : cudaGetErrorString(status);
        return found;
    }
    for (int device = 0; device < count; ++device) {
        cudaDeviceProp properties;
        if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
        CudaDevice info;
        info.name = properties.name;
        info.major = properties.major;
        info.minor = properties.minor;
        info.multiprocessors = properties.multiProcessorCount;
        info.memory = static_cast<int64_t>(properties.totalGlobalMem);
        info.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        info.registers_per_multiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor, device);
        found.devices.push_back(info);
    }
    if (found.devices.empty()) found.reason = "the driver shows no GPU (is CUDA_VISIBLE_DEVICES empty?)";
    return found;
}

}  // namespace fastode
