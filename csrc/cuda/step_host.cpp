// The kernels of the `stepped` backend run on the host, thread after thread: for tests where there is no GPU.
#include "cuda/step_programs.h"

namespace fastode {
namespace {

struct HostExec {
    template <int kThreads, class T, class F>
    static void groups(const F& f, int64_t items, const Stream&) {
        const HostGroup<kThreads> group;
        T weights[kMostStages];
        for (int64_t item = 0; item < items; ++item) f(group, item, weights);
    }

    template <class F>
    static void elements(const F& f, int64_t count, const Stream&) {
        for (int64_t index = 0; index < count; ++index) f(index);
    }
};

}  // namespace

const StepLaunches<float> host_step_launches_f32 = launches_of<StepPrograms<HostExec, float>, float>();
const StepLaunches<double> host_step_launches_f64 = launches_of<StepPrograms<HostExec, double>, double>();

}  // namespace fastode
