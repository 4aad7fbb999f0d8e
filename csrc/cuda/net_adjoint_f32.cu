#include "cuda/net_device.h"

namespace fastode {

const NetLaunches<float> cuda_net_launches_f32 = {net_forward_f32, net_adjoint_on_device<float>,
                                                  net_groups_on_device<float>};

}  // namespace fastode
