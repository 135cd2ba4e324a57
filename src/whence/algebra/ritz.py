"""The eigenpairs of largest absolute value, by one Lanczos run from a random vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.algebra.lanczos import LanczosBasis
from whence.algebra.operators import SymmetricOperator
from whence.algebra.spectral import rounding_tolerance
from whence.checks import require_count
from whence.errors import InputError, NumericalError
from whence.rng import torch_generator


@final
@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs, by decreasing absolute value.

    Attributes:
        values: (k,) float64.
        vectors: (k, dim), orthonormal rows, in the dtype of the operator.
        residuals: (k,) float64, |C u - s u| of each: some eigenvalue is no further than this from s.
        n_iterations: Applications of the operator.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    n_iterations: int

    @property
    def relative_residuals(self) -> Tensor:
        """Residuals over the absolute values; infinite for a value of 0 that is not exact, 0 for one that is."""
        return torch.where(self.residuals == 0, 0.0, self.residuals / self.values.abs())


def leading_pairs(operator: SymmetricOperator, *, rank: int, n_iterations: int, seed: int = 0) -> RitzPairs:
    """The `rank` Ritz pairs of largest absolute value in a Krylov space of `n_iterations` vectors.

    Of a repeated eigenvalue one eigenvector is found, that along the start vector: no Krylov space holds another.

    Args:
        operator: C, symmetric, possibly indefinite.
        rank: Most pairs to keep; fewer where the Krylov space is complete before.
        n_iterations: At least `rank`; never more than dim are made.
        seed: Of the start vector.
    Raises:
        InputError: More pairs than iterations.
        NumericalError: The operator gave NaN or infinity.
    Cost:
        n_iterations applications of the operator to one vector, O(n_iterations^2 dim) for keeping them orthogonal, and
        memory for n_iterations + rank vectors.
    Reference:
        Golub and Van Loan, Matrix Computations, 4th edition, section 10.1. For a symmetric operator Arnoldi's
        iteration is that of Lanczos.
    """
    require_count(rank, "rank")
    require_count(n_iterations, "n_iterations")
    if rank > n_iterations:
        raise InputError(f"`rank` must be at most `n_iterations`; got {rank} pairs from {n_iterations} iterations.")
    start = torch.randn(1, operator.dim, generator=torch_generator(seed, "leading pairs"), dtype=torch.float64)
    basis = LanczosBasis(operator, start.to(operator.device, operator.dtype))
    basis.extend(min(n_iterations, operator.dim))
    alphas, betas = basis.alphas[:, 0], basis.betas[:, 0]
    if not bool(torch.isfinite(alphas).all() and torch.isfinite(betas).all()):
        raise NumericalError("The operator gave NaN or infinite values. Check the model and its gradients.")
    ended = (betas == 0).nonzero().flatten()
    size = int(ended[0]) + 1 if len(ended) else basis.steps  # behind it are fill-ins, which are no vectors
    off = betas[: size - 1]
    values, rotation = torch.linalg.eigh(torch.diag(alphas[:size]) + torch.diag(off, 1) + torch.diag(off, -1))
    kept = values.abs().argsort(descending=True)[:rank]
    rotation = rotation[:, kept]
    vectors = rotation.T.to(basis.basis.dtype) @ basis.basis[:size, 0]
    residuals = betas[size - 1] * rotation[-1].abs()
    return RitzPairs(_without_rounding(values[kept], operator.dtype), vectors, residuals, basis.steps)


def _without_rounding(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Negative values that are rounding errors of zero, as zero."""
    floor = -rounding_tolerance(dtype) * float(values.abs().max())
    return torch.where((values < 0) & (values >= floor), 0.0, values)
