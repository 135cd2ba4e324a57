"""Symmetric operators that are applied, not stored. Each acts on every row of a block (m, dim)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from whence.algebra.precision import require_shape, require_square
from whence.checks import require_count
from whence.errors import InputError, ShapeError

# Rows of the identity applied at once by `to_dense`.
_IDENTITY_ROWS = 256


class SymmetricOperator(ABC):
    """A symmetric linear map on vectors of length `dim`.

    Attributes:
        dim: Length of a vector.
        dtype: Element type of the vectors it takes and gives.
        device: Where it computes.
    """

    def __init__(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        require_count(dim, "dim")
        self.dim, self.dtype, self.device = dim, dtype, device

    def apply(self, rows: Tensor) -> Tensor:
        """The operator applied to each row. `rows` (m, dim) -> (m, dim).

        Raises:
            ShapeError: `rows` is not (m, dim).
            InputError: `rows` has another dtype or device.
        """
        require_shape(rows, (None, self.dim), "rows", "rows (m, dim)")
        if rows.dtype != self.dtype or rows.device.type != self.device.type:
            raise InputError(
                f"The operator works in {self.dtype} on {self.device}; `rows` are {rows.dtype} on {rows.device}. "
                "Convert them with `rows.to(operator.device, operator.dtype)`."
            )
        return self._apply(rows)

    @abstractmethod
    def _apply(self, rows: Tensor) -> Tensor:
        """`apply`, for rows known to fit."""

    def to_dense(self) -> Tensor:
        """The matrix (dim, dim), by applying the operator to the identity in blocks. For small `dim`."""
        blocks = []
        for start in range(0, self.dim, _IDENTITY_ROWS):
            stop = min(start + _IDENTITY_ROWS, self.dim)
            rows = torch.zeros(stop - start, self.dim, dtype=self.dtype, device=self.device)
            rows[torch.arange(stop - start), torch.arange(start, stop)] = 1
            blocks.append(self._apply(rows))
        return torch.cat(blocks)


@final
class DenseOperator(SymmetricOperator):
    """A symmetric matrix (dim, dim). Symmetry is the caller's promise."""

    def __init__(self, matrix: Tensor) -> None:
        require_square(matrix, "matrix")
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.matrix = matrix

    def _apply(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix


@final
class FactorOperator(SymmetricOperator):
    """C = factor^T factor, never formed. `factor` (n_rows, dim) holds any scaling, such as 1 / sqrt(n_train)."""

    def __init__(self, factor: Tensor) -> None:
        if factor.ndim != 2:
            raise ShapeError(f"`factor` must be (n_rows, dim); got {tuple(factor.shape)}.")
        super().__init__(factor.shape[1], factor.dtype, factor.device)
        self.factor = factor

    def _apply(self, rows: Tensor) -> Tensor:
        return (rows @ self.factor.T) @ self.factor


@final
class CallbackOperator(SymmetricOperator):
    """A function from (m, dim) to (m, dim), such as a Gauss-Newton or Hessian product."""

    def __init__(
        self,
        dim: int,
        fn: Callable[[Tensor], Tensor],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(dim, dtype, torch.device(device))
        self._fn = fn

    def _apply(self, rows: Tensor) -> Tensor:
        product = self._fn(rows)
        if product.shape != rows.shape:
            raise ShapeError(f"The callback must keep the shape {tuple(rows.shape)}; it gave {tuple(product.shape)}.")
        return product


@final
class ShiftedOperator(SymmetricOperator):
    """`op` + `shift` times the identity."""

    def __init__(self, op: SymmetricOperator, shift: float) -> None:
        super().__init__(op.dim, op.dtype, op.device)
        self.op, self.shift = op, float(shift)

    def _apply(self, rows: Tensor) -> Tensor:
        return self.op.apply(rows) + self.shift * rows
