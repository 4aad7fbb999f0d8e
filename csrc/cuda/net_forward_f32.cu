#include "cuda/net_device.h"

namespace fastode {

void net_forward_f32(const NetSolve<float>& solve, const Stream& stream) { net_forward_on_device(solve, stream); }

}  // namespace fastode
