"""Continuously differentiable dense output in powers of theta."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def hermite_interpolant(
    b: Sequence[Fraction], correction: Sequence[Sequence[Fraction]] | None = None
) -> list[list[Fraction]]:
    """Weights b_i(theta) of a continuously differentiable interpolant, as coefficients of theta, theta^2, ...

        b_i(theta) = theta^2 (3 - 2 theta) b_i + theta (1 - theta)^2 [i = 1] - theta^2 (1 - theta) [i = s]
                     + theta^2 (1 - theta)^2 (u_i0 + u_i1 theta + u_i2 theta^2 + ...)

    Without the correction u this is cubic Hermite interpolation of the values and slopes at both ends of the step.
    Every polynomial interpolant that has these values and slopes is of this form (Hairer, Norsett and Wanner 1993,
    section II.6).

    Args:
        b: s weights of a first-same-as-last method: stage 1 is the slope at theta = 0, stage s that at theta = 1.
        correction: s rows u_i of equal length r; None for r = 0.

    Returns:
        s rows of 3 + r coefficients: entry m - 1 multiplies theta^m.
    """
    s = len(b)
    rows = []
    for i in range(s):
        first, last = int(i == 0), int(i == s - 1)
        row = [Fraction(first), 3 * b[i] - 2 * first - last, first + last - 2 * b[i]]
        if correction is not None:
            row += [Fraction(0)] * len(correction[i])
            for k, u in enumerate(correction[i]):
                row[k + 1] += u
                row[k + 2] -= 2 * u
                row[k + 3] += u
        rows.append(row)
    return rows
