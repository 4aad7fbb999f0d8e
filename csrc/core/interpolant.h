// The basis of the dense output inside a step: fastode/interpolant.py, for host and device.
#pragma once

#include "core/step_control.h"

namespace fastode {

// Bernstein polynomials 1..degree at theta: phi[m - 1] = comb(degree, m) theta^m (1 - theta)^(degree - m).
FASTODE_HOST_DEVICE inline void bernstein_basis(double theta, int degree, double* phi) {
    double binomial = 1.0, power = 1.0;
    for (int m = 1; m <= degree; ++m) {
        binomial = binomial * (degree - m + 1) / m;
        power *= theta;
        phi[m - 1] = binomial * power;
    }
    power = 1.0;
    for (int m = degree - 1; m >= 1; --m) {
        power *= 1.0 - theta;
        phi[m - 1] *= power;
    }
}

}  // namespace fastode
