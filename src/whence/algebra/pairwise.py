"""Inner products and cosines between two blocks of rows, accumulated in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.algebra.precision import FLOAT64, as_float64, require_shape, row_norms
from whence.checks import require_count
from whence.errors import ShapeError


def pairwise(x_rows: Tensor, y_rows: Tensor, *, block_dim: int | None = None) -> Tensor:
    """All inner products. `x_rows` (m, dim), `y_rows` (k, dim) -> (m, k), float64.

    Args:
        x_rows: Rows of any floating dtype; converted to float64 before the product.
        y_rows: Rows of the same length.
        block_dim: Columns converted at a time, so that a float32 block of long rows needs no float64 copy.
    """
    if x_rows.ndim != 2:
        raise ShapeError(f"`x_rows` must be (m, dim); got {tuple(x_rows.shape)}.")
    dim = x_rows.shape[1]
    require_shape(y_rows, (None, dim), "y_rows", "rows as long as those of `x_rows` (k, dim)")
    if block_dim is None:
        return as_float64(x_rows) @ as_float64(y_rows).T
    require_count(block_dim, "block_dim")
    total = torch.zeros(len(x_rows), len(y_rows), dtype=FLOAT64, device=as_float64(x_rows[:0]).device)
    for start in range(0, dim, block_dim):
        columns = slice(start, start + block_dim)
        total += as_float64(x_rows[:, columns]) @ as_float64(y_rows[:, columns]).T
    return total


def pairwise_cosine(x_rows: Tensor, y_rows: Tensor, *, block_dim: int | None = None) -> Tensor:
    """All cosines, (m, k), float64. A row of norm zero has no direction: its cosines are NaN.

    No epsilon is added anywhere: it would turn "undefined" into "0" and bias short rows. Arguments as `pairwise`.
    """
    products = pairwise(x_rows, y_rows, block_dim=block_dim)
    x_norms, y_norms = (row_norms(rows).to(products.device) for rows in (x_rows, y_rows))
    return products / x_norms[:, None] / y_norms[None, :]
