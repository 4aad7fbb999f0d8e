#include <pybind11/pybind11.h>

#include "build_config.h"
#include "cuda/device_info.h"

namespace py = pybind11;

namespace fastode {

void bind_step(py::module_& m);
void bind_net(py::module_& m);

namespace {

CudaDevices devices() {
#if FASTODE_HAVE_CUDA
    return query_cuda_devices();
#else
    CudaDevices none;
    none.reason = std::string("fastode was built without CUDA: ") + FASTODE_BUILD_CUDA_REASON;
    return none;
#endif
}

py::list device_dicts() {
    py::list list;
    for (const CudaDevice& device : devices().devices) {
        py::dict entry;
        entry["name"] = device.name;
        entry["capability"] = py::make_tuple(device.major, device.minor);
        entry["multiprocessors"] = device.multiprocessors;
        entry["memory"] = device.memory;
        entry["shared_per_block"] = device.shared_per_block;
        entry["registers_per_multiprocessor"] = device.registers_per_multiprocessor;
        list.append(entry);
    }
    return list;
}

py::dict runtime_dict() {
    const CudaDevices found = devices();
    py::dict info;
    info["driver"] = found.driver;
    info["runtime"] = found.runtime;
    info["reason"] = found.reason;
    return info;
}

}  // namespace

void bind_cuda(py::module_& m) {
    m.def("cuda_devices", &device_dicts, "The visible CUDA GPUs, one dict each; empty if there are none.");
    m.def("cuda_runtime", &runtime_dict,
          "Dict: driver and runtime versions (13000 is 13.0, 0 is none) and the reason why there are no devices.");
    bind_step(m);
    bind_net(m);
}

}  // namespace fastode
