"""The Neumann series of an inverse: LiSSA without sampling, and gradient descent written out."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.algebra.operators import SymmetricOperator
from whence.checks import require_count, require_positive
from whence.errors import NumericalError


def neumann_series(operator: SymmetricOperator, rows: Tensor, lr: float, terms: int) -> Tensor:
    """sum_{t < terms} lr (I - lr C)^t v for each row v: a horizon of `terms` plain steps of `lr`.

    LiSSA of depth d that starts at v has d + 1 terms.

    Args:
        operator: C, symmetric.
        rows: (m, dim), on the operator's device and in its dtype.
        lr: Step; below 2 / s_max or the series diverges.
        terms: At least 1.
    Returns:
        (m, dim).
    Raises:
        NumericalError: The series overflowed.
    Cost:
        `terms - 1` applications of the operator.
    Reference:
        Agarwal, Bullins and Hazan (2017), arXiv:1602.03943 (LiSSA).
    """
    require_positive(lr, "lr")
    require_count(terms, "terms")
    total = lr * rows
    for _ in range(terms - 1):
        total = total + lr * (rows - operator.apply(total))
    if not bool(torch.isfinite(total).all()):
        raise NumericalError(
            f"The Neumann series with lr {lr:.6g} overflowed within {terms} terms. Its lr must be below 2 / (largest "
            "eigenvalue of the operator); see `largest_eigenvalue`."
        )
    return total
