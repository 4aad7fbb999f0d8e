"""Dense output inside a step: polynomials in the Bernstein basis.

With theta = (t - t_n) / h the state is y_n + h sum_m phi_m(theta) sum_i q_im k_i, phi_m the Bernstein polynomials
m = 1..degree and q those of ``Tableau.q``. In powers of theta the coefficients of high-order methods cancel (dopri8:
magnitudes above 200); in this basis they are as large as the change of the state over the step.
"""

from __future__ import annotations

from math import comb

import torch
from torch import Tensor


def basis(theta: Tensor, degree: int) -> Tensor:
    """phi_1..phi_degree at theta (...), stacked in front: (degree, ...)."""
    rest = 1.0 - theta
    powers, rests = [torch.ones_like(theta)], [torch.ones_like(theta)]
    for _ in range(degree):  # products: the bits of a power depend on the place in memory
        powers.append(powers[-1] * theta)
        rests.append(rests[-1] * rest)
    return torch.stack([comb(degree, m) * powers[m] * rests[degree - m] for m in range(1, degree + 1)])
