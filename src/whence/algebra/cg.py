"""Conjugate gradients for many right-hand sides and many shifts at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.algebra.operators import SymmetricOperator
from whence.algebra.precision import FLOAT64, require_shape, row_norms, row_products
from whence.checks import require_count, require_finite, require_positive
from whence.errors import ConvergenceError, InputError, NotPositiveDefiniteError, NumericalError

# The recurrence aims below the tolerance, because its residual drifts a little from the true one.
_AIM = 0.5
# Iterations tried by default, as a multiple of dim; in exact arithmetic dim would do.
_ITERATIONS_PER_DIM = 10

Progress = Callable[[int, float], None]


@final
@dataclass(frozen=True, eq=False)
class CGResult:
    """What `conjugate_gradient` found.

    Attributes:
        solutions: (n_shifts, m, dim), (C + shift)^-1 of each row, in the order of the shifts given.
        relative_residuals: (n_shifts, m), true residual over the norm of the row, float64; 0 for zero rows.
        iterations: Steps taken, each one application of the operator.
        converged: (n_shifts, m), whether the true residual is within the tolerance.
    """

    solutions: Tensor
    relative_residuals: Tensor
    iterations: int
    converged: Tensor


def conjugate_gradient(
    operator: SymmetricOperator,
    rows: Tensor,
    shifts: Sequence[float],
    *,
    tolerance: float = 1e-5,
    max_iterations: int | None = None,
    allow_unconverged: bool = False,
    progress: Progress | None = None,
) -> CGResult:
    """Solve (C + shift) x = row for every row and every shift, with one Krylov space a row.

    The system of the smallest shift is iterated; the others follow by scalars, because shifts leave the Krylov space
    as it is. Solved rows are dropped from the block. The residuals reported are computed anew at the end.

    Args:
        operator: C; C plus the smallest shift must be positive definite.
        rows: (m, dim), on the operator's device and in its dtype. Zero rows give zero.
        shifts: Dampings, one or more, in any order.
        tolerance: Residual over the norm of the row.
        max_iterations: 10 * dim if not given.
        allow_unconverged: Return what was reached instead of raising.
        progress: Called after each iteration with its number and the worst relative residual.
    Raises:
        ConvergenceError: The tolerance was not reached; the message has residual and iterations.
        NotPositiveDefiniteError: A direction of zero or negative curvature was met.
        NumericalError: The operator gave NaN or infinity.
    Cost:
        One application of the operator an iteration for all shifts, and one a shift at the end; memory
        2 * n_shifts + 3 blocks of the size of `rows`.
    Reference:
        Jegerlehner (1996), arXiv:hep-lat/9612014, eqs. 2.42-2.44 (CG-M), with ratios of successive zeta.
    """
    gaps, base = checked_systems(operator, rows, shifts, tolerance)
    limit = _ITERATIONS_PER_DIM * operator.dim if max_iterations is None else max_iterations
    require_count(limit, "max_iterations")
    solutions = torch.zeros(len(shifts), *rows.shape, dtype=rows.dtype, device=rows.device)
    norms = row_norms(rows)
    block = _Block(rows, norms, gaps, norms > 0)
    iterations = 0
    while len(block.index) and iterations < limit:
        block.step(operator, base, _AIM * tolerance)
        iterations += 1
        if progress is not None:
            progress(iterations, block.worst_residual())
        block.retire(solutions, block.unsolved(_AIM * tolerance))
    block.retire(solutions, torch.zeros_like(block.index, dtype=torch.bool))
    residuals = _true_residuals(operator, rows, norms, solutions, shifts)
    converged = residuals <= tolerance
    if not allow_unconverged and not bool(converged.all()):
        raise _not_converged(residuals, tolerance, iterations, limit)
    return CGResult(solutions, residuals, iterations, converged)


class _Block:
    """The rows still being solved. Vectors keep the dtype of the rows, scalars are float64."""

    def __init__(self, rows: Tensor, norms: Tensor, gaps: Tensor, keep: Tensor) -> None:
        self.index = keep.nonzero().flatten()
        self._gaps = gaps[:, None]
        self._norms = norms[keep]
        self._residual = rows[keep]
        self._direction = self._residual  # of the base system
        n_shifts = len(gaps)
        self._x = torch.zeros(n_shifts, *self._residual.shape, dtype=rows.dtype, device=rows.device)
        self._p = self._residual.expand_as(self._x).clone()  # directions of the shifted systems
        self._square = self._norms**2
        ones = torch.ones_like(self._norms)
        self._alpha, self._beta = ones, torch.zeros_like(ones)
        self._ratio = ones.expand(n_shifts, -1).clone()  # zeta_k / zeta_{k-1}
        self._zeta = self._ratio.clone()  # shifted residual over base residual

    def relative_residuals(self) -> Tensor:
        """By the recurrence, (n_shifts, rows left)."""
        return self._zeta.abs() * self._square.sqrt() / self._norms

    def worst_residual(self) -> float:
        return float(self.relative_residuals().max())

    def unsolved(self, aim: float) -> Tensor:
        """Rows with a shift above `aim`."""
        return (self.relative_residuals() > aim).any(0)

    def step(self, operator: SymmetricOperator, base: float, aim: float) -> None:
        """One iteration; solutions of shifts already at `aim` are left as they are."""
        image = operator.apply(self._direction) + base * self._direction
        curvature = row_products(self._direction, image)
        _require_positive_curvature(curvature, self._direction, base)
        alpha = self._square / curvature
        ratio = self._alpha / (alpha * self._beta * (1 - self._ratio) + self._alpha * (1 + self._gaps * alpha))
        frozen = self.relative_residuals() <= aim
        self._x += self._scaled(torch.where(frozen, 0.0, alpha * ratio), self._p)
        self._residual = self._residual - self._scaled(alpha, image)
        square = row_products(self._residual, self._residual)
        beta = square / self._square
        self._zeta = self._zeta * ratio
        self._p = self._scaled(self._zeta, self._residual) + self._scaled(beta * ratio**2, self._p)
        self._direction = self._residual + self._scaled(beta, self._direction)
        self._alpha, self._beta, self._ratio, self._square = alpha, beta, ratio, square

    def retire(self, solutions: Tensor, keep: Tensor) -> None:
        """Write out the solutions of the rows not in `keep` and drop them."""
        if bool(keep.all()):
            return
        solutions[:, self.index[~keep]] = self._x[:, ~keep]
        self.index, self._norms, self._square = self.index[keep], self._norms[keep], self._square[keep]
        self._residual, self._direction = self._residual[keep], self._direction[keep]
        self._alpha, self._beta = self._alpha[keep], self._beta[keep]
        self._x, self._p = self._x[:, keep], self._p[:, keep]
        self._ratio, self._zeta = self._ratio[:, keep], self._zeta[:, keep]

    @staticmethod
    def _scaled(scalars: Tensor, vectors: Tensor) -> Tensor:
        return scalars[..., None].to(vectors.dtype) * vectors


def checked_systems(
    operator: SymmetricOperator, rows: Tensor, shifts: Sequence[float], tolerance: float
) -> tuple[Tensor, float]:
    """Shifts above the smallest, and the smallest."""
    require_shape(rows, (None, operator.dim), "rows", "right-hand sides (m, dim)")
    require_finite(rows, "`rows`", rows="row")
    require_positive(tolerance, "tolerance")
    if not shifts or not all(math.isfinite(shift) for shift in shifts):
        raise InputError(f"`shifts` must be one or more finite numbers; got {list(shifts)!r}.")
    base = min(shifts)
    return torch.tensor([shift - base for shift in shifts], dtype=FLOAT64, device=rows.device), base


def _require_positive_curvature(curvature: Tensor, direction: Tensor, base: float) -> None:
    if not bool(torch.isfinite(curvature).all()):
        raise NumericalError("The operator gave NaN or infinite values. Check the model and its gradients.")
    if bool((curvature > 0).all()):
        return
    quotient = float((curvature / row_products(direction, direction)).min())
    raise NotPositiveDefiniteError(
        f"Conjugate gradients met a direction of curvature {quotient:.6g} (shift {base:.6g} included): the operator "
        f"is not positive definite. Use a damping above {base - quotient:.6g}, or Lanczos."
    )


def _true_residuals(
    operator: SymmetricOperator, rows: Tensor, norms: Tensor, solutions: Tensor, shifts: Sequence[float]
) -> Tensor:
    residuals = torch.stack(
        [row_norms(rows - operator.apply(x) - shift * x) for shift, x in zip(shifts, solutions, strict=True)]
    )
    return torch.where(norms > 0, residuals / norms, 0.0)


def _not_converged(residuals: Tensor, tolerance: float, iterations: int, limit: int) -> ConvergenceError:
    n_bad = int((~(residuals <= tolerance)).sum())
    stopped = iterations >= limit
    advice = "more `max_iterations`, " if stopped else "float64 rows and operator (rounding stopped it), "
    return ConvergenceError(
        f"Conjugate gradients left {n_bad} of {residuals.numel()} systems above the tolerance {tolerance:.3g}: the "
        f"worst relative residual is {float(residuals.max()):.3g} after {iterations} iterations. Use {advice}a larger "
        "damping, a looser tolerance, or `allow_unconverged=True`."
    )
