#include "cuda/net_device.h"

namespace fastode {

void net_forward_f64(const NetSolve<double>& solve, const Stream& stream) { net_forward_on_device(solve, stream); }

}  // namespace fastode
