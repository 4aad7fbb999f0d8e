"""The matrices of Newton's method and of Rosenbrock's, factorised sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastode.backends.implicit.arithmetic import column


@dataclass(frozen=True)
class Factors:
    """LU factors of a matrix per sample. A singular or infinite matrix gives solutions that are not finite."""

    lu: Tensor
    pivots: Tensor

    def solve(self, right: Tensor, transposed: bool = False) -> Tensor:
        """Solutions (n, N) for right-hand sides (n, N), of the transposed systems if asked for."""
        return torch.linalg.lu_solve(self.lu, self.pivots, right[..., None], adjoint=transposed)[..., 0]

    def where(self, mask: Tensor, other: Factors) -> Factors:
        """These where the mask (n,) is true, the others elsewhere."""
        chosen = torch.where(mask[:, None, None], self.lu, other.lu)
        return Factors(chosen, torch.where(mask[:, None], self.pivots, other.pivots))


def factorise(matrix: Tensor) -> Factors:
    """LU factors of matrices (n, N, N)."""
    lu, pivots, info = torch.linalg.lu_factor_ex(matrix)
    singular = info != 0  # LAPACK stops at NaN and leaves exact zeros on the diagonal
    return Factors(torch.where(singular[:, None, None], torch.nan, lu), pivots)


def stage_matrix(h: Tensor, a: Sequence[Sequence[float]], jacobians: Sequence[Tensor]) -> Tensor:
    """I - h a_ij J_i for the m stages of a block: (n, m D, m D).

    Args:
        h: (n,) float64, signed step sizes.
        a: (m, m) coefficients among the stages of the block.
        jacobians: m times (n, D, D), the Jacobian at each stage, or once for all.
    """
    m, (n, width) = len(a), jacobians[0].shape[:2]
    size = column(h, jacobians[0])[:, :, None]
    if m == 1:
        matrix = -float(a[0][0]) * size * jacobians[0]
        matrix.diagonal(dim1=1, dim2=2).add_(1.0)
        return matrix
    matrix = jacobians[0].new_empty(n, m, width, m, width)
    for i in range(m):
        scaled = size * jacobians[i if len(jacobians) > 1 else 0]
        for j in range(m):
            matrix[:, i, :, j] = -float(a[i][j]) * scaled
    matrix = matrix.reshape(n, m * width, m * width)
    matrix.diagonal(dim1=1, dim2=2).add_(1.0)
    return matrix
