"""Eigenvectors of a layer's moments, in float64, with a second solver where the first fails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.errors import NonFiniteError, NumericalError


@dataclass(frozen=True, eq=False)
class Eigen:
    """An eigen-decomposition.

    Attributes:
        values: (d,), not negative, increasing.
        vectors: (d, d), in columns.
        is_fallback: Whether divide and conquer failed, and QR iterations were used.
    """

    values: Tensor
    vectors: Tensor
    is_fallback: bool


def eigen(moment: Tensor, what: str) -> Eigen:
    """Decompose a positive semi-definite matrix (d, d), float64.

    Args:
        moment: The matrix.
        what: What it is, for messages.
    Raises:
        NonFiniteError: It holds NaN or infinity.
        NumericalError: No solver gave finite eigenvectors.
    """
    if not bool(torch.isfinite(moment).all()):
        raise NonFiniteError(
            f"{what} has NaN or infinite entries, so it has no eigenvectors. Look for examples with huge activations "
            "or gradients, or compute in float64 with `dtype=torch.float64`."
        )
    symmetric = (moment + moment.T) / 2
    found = _divide_and_conquer(symmetric)
    is_fallback = found is None
    values, vectors = _qr_iterations(symmetric, what) if found is None else found
    # Rounding leaves tiny negative numbers where the matrix has none.
    return Eigen(values.clamp_min(0), vectors, is_fallback)


def _divide_and_conquer(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # of which torch's LinAlgError is a kind
        return None
    return (values, vectors) if bool(torch.isfinite(vectors).all()) else None


def _qr_iterations(matrix: Tensor, what: str) -> tuple[Tensor, Tensor]:
    from scipy.linalg import LinAlgError, eigh

    try:
        values, vectors = eigh(matrix.cpu().numpy(), driver="ev")
    except (LinAlgError, ValueError) as error:
        raise NumericalError(f"Neither of two solvers found an eigen-decomposition of {what}: {error}") from error
    if not np.isfinite(vectors).all():
        raise NumericalError(f"Both eigensolvers gave NaN for {what}.")
    return torch.from_numpy(values).to(matrix.device), torch.from_numpy(vectors).to(matrix.device)
