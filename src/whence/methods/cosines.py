"""Cosines where a vector of exactly zero counts as unrelated."""

from __future__ import annotations

from torch import Tensor

from whence.algebra import pairwise_cosine


def cosines_or_zero(x_rows: Tensor, y_rows: Tensor) -> Tensor:
    """cos(x, y) of all rows, (m, k); 0 where a row is exactly zero and has no direction."""
    directionless = (x_rows.norm(dim=1) == 0)[:, None] | (y_rows.norm(dim=1) == 0)
    return pairwise_cosine(x_rows, y_rows).masked_fill(directionless, 0.0)
