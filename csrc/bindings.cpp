// The extension module fastode._C. Each area binds its own functions in a bind_<area>.cpp beside its code.
#include <pybind11/pybind11.h>

namespace fastode {

void bind_core(pybind11::module_& m);
void bind_matcher(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);
void bind_combine(pybind11::module_& m);
void bind_stepper(pybind11::module_& m);
void bind_tile(pybind11::module_& m);
void bind_events(pybind11::module_& m);

}  // namespace fastode

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled parts of fastode. Pointers and CUDA streams are plain integers; nothing here knows torch.";
    fastode::bind_core(m);
    fastode::bind_matcher(m);
    fastode::bind_cuda(m);
    fastode::bind_combine(m);
    fastode::bind_stepper(m);
    fastode::bind_tile(m);
    fastode::bind_events(m);
}
