#include "cuda/net_device.h"

namespace fastode {

const NetLaunches<double> cuda_net_launches_f64 = {net_forward_f64, net_adjoint_on_device<double>,
                                                   net_groups_on_device<double>};

}  // namespace fastode
