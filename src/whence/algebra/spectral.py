"""Curvatures small enough to diagonalise: by their rows (dual) or by their parameters (primal).

One eigen-decomposition serves every filter, damping and horizon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.algebra.filters import Horizon, ResolvableFilter, SpectralFilter
from whence.algebra.look_ahead import look_ahead_kernel
from whence.algebra.precision import as_float64, require_shape, require_square
from whence.algebra.steps import Steps
from whence.checks import require_count, require_finite
from whence.errors import InputError, NotPositiveDefiniteError

# A negative eigenvalue this small, relative to the largest, is a rounding error of `eigh` and counts as 0. For
# matrices summed in a lower precision: this many units of that precision.
ROUNDING = 1e-12
ROUNDING_UNITS = 16
# A Gram matrix more negative than this (relative) is not one; single-precision sums reach about 1e-6.
NOT_A_GRAM = 1e-4
# Relative difference between the two halves of a matrix above which it is refused as not symmetric.
ASYMMETRY = 1e-3


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Relative size below which a negative eigenvalue of a matrix in `dtype` is taken for 0."""
    return max(ROUNDING, ROUNDING_UNITS * torch.finfo(dtype).eps)


@final
@dataclass(frozen=True, eq=False)
class DualSpectrum:
    """C = A^T A of size `dim`, known through the R x R Gram matrix A A^T of its rows.

    Attributes:
        eigenvalues: (R,) of A A^T, ascending, non-negative, float64; those of C apart from zeros.
        vectors: (R, R), one eigenvector of A A^T a column.
        dim: Size of C, the number of parameters.
    """

    eigenvalues: Tensor
    vectors: Tensor
    dim: int

    @classmethod
    def from_gram(cls, gram: Tensor, dim: int) -> DualSpectrum:
        """Diagonalise `gram` (R, R) = A A^T.

        Raises:
            ShapeError: Not square.
            NonFiniteError: NaN or infinity in `gram`.
            InputError: Not symmetric.
            NotPositiveDefiniteError: Too negative to be a Gram matrix.
        Cost:
            O(R^3), once.
        """
        require_count(dim, "dim")
        eigenvalues, vectors = _eigh(gram, "gram")
        floor = -NOT_A_GRAM * float(eigenvalues.abs().max())
        if float(eigenvalues[0]) < floor:
            raise NotPositiveDefiniteError(
                f"`gram` must be A A^T, without negative eigenvalues; the smallest is {float(eigenvalues[0]):.6g} and "
                f"the largest {float(eigenvalues[-1]):.6g}. For an indefinite curvature use `PrimalSpectrum`."
            )
        # `eigh` returns tiny negatives for a rank-deficient Gram matrix (1e-7 of the largest if it was summed in
        # float32): clamp, or a long horizon grows exponentially along them.
        return cls(eigenvalues.clamp(min=0), vectors, dim)

    @property
    def mean_eigenvalue(self) -> float:
        """trace(C) / dim, zeros included."""
        return float(self.eigenvalues.sum()) / self.dim

    def check(self, filter: ResolvableFilter) -> SpectralFilter:
        """The resolved filter, after it accepted this spectrum; see `SpectralFilter.check`."""
        resolved = filter.resolve(mean_eigenvalue=self.mean_eigenvalue)
        resolved.check(0.0, float(self.eigenvalues[-1]))
        return resolved

    def bilinear(self, filter: ResolvableFilter, inner: Tensor, ax: Tensor, ay: Tensor) -> Tensor:
        """X f(C) Y^T = f(0) X Y^T - (A X^T)^T U h(s) U^T (A Y^T); nothing is divided by an eigenvalue.

        Args:
            filter: Resolved here with `mean_eigenvalue`; a damping in another unit must be resolved before.
            inner: (m, k), X Y^T.
            ax: (R, m), A X^T.
            ay: (R, k), A Y^T.
        Returns:
            (m, k), float64. Relative to f(0) X Y^T the error is rounding; where f(s) << f(0) on all that matters
            (a damping far below the spectrum) that many digits are lost, and `PrimalSpectrum` is the better one.
        Raises:
            NumericalError: The filter refuses this spectrum.
        Cost:
            O(R^2 (m + k) + R m k).
        """
        resolved = self.check(filter)
        n_rows = len(self.eigenvalues)
        require_shape(ax, (n_rows, None), "ax", "A X^T (n_rows, m)")
        require_shape(ay, (n_rows, None), "ay", "A Y^T (n_rows, k)")
        require_shape(inner, (ax.shape[1], ay.shape[1]), "inner", "X Y^T (m, k)")
        left, right = self._rotate(ax), self._rotate(ay)
        correction = (left * resolved.complement(self.eigenvalues)[:, None]).T @ right
        return resolved.at_zero() * self._move(inner) - correction

    def look_ahead_rows(self, steps: Steps, aq: Tensor, ag: Tensor) -> Tensor:
        """Second term of the exact look-ahead, split over the rows of A.

        L[q, r] = sum_ab (a_q.u_a) F_ab (A u_a)_r (A u_b)_r (u_b.g) over the eigenvectors u of C. With A = V^(1/2) J
        / sqrt(n) the sum of L over the rows of example i is a_q^T (1/n) sum_ab u_a F_ab (u_a^T J_i^T V_i J_i u_b)
        (u_b^T g), to be subtracted from (1/n) a_q^T f(C) b_i: the factor 1/n is already in A.

        Args:
            steps: The further training; `steps.first(n)` for other amounts.
            aq: (R, m), A times the query gradients.
            ag: (R,), A times the gradient g of the mean train loss at the start.
        Returns:
            (m, R), float64.
        Raises:
            NumericalError: The steps diverge on this spectrum.
        Cost:
            O(R^3) for `look_ahead_factor`, then O(R^2 m).
        """
        require_shape(aq, (len(self.eigenvalues), None), "aq", "A a_q^T (n_rows, m)")
        return self._rotate(aq).T @ self.look_ahead_factor(steps, ag).T

    def look_ahead_factor(self, steps: Steps, ag: Tensor) -> Tensor:
        """The part of `look_ahead_rows` that does not depend on the queries: L = (aq^T U) @ factor^T. (R, R)."""
        require_shape(ag, (len(self.eigenvalues),), "ag", "A g (n_rows,)")
        self.check(Horizon(steps))
        kernel = look_ahead_kernel(self.eigenvalues, self.eigenvalues, steps)
        return self.vectors * ((self.vectors * self._rotate(ag)) @ kernel.T)

    def _move(self, x: Tensor) -> Tensor:
        return as_float64(x).to(self.vectors.device)

    def _rotate(self, ax: Tensor) -> Tensor:
        return self.vectors.T @ self._move(ax)


@final
@dataclass(frozen=True, eq=False)
class PrimalSpectrum:
    """A symmetric C of size `dim`, possibly indefinite, diagonalised.

    Attributes:
        eigenvalues: (dim,), ascending, float64.
        vectors: (dim, dim), one eigenvector a column.
    """

    eigenvalues: Tensor
    vectors: Tensor

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> PrimalSpectrum:
        """Diagonalise `matrix` (dim, dim).

        Negative eigenvalues within `rounding_tolerance` of zero are set to 0: `eigh` returns them for a rank-deficient
        Gauss-Newton matrix, and a long horizon grows exponentially along them.

        Raises:
            ShapeError: Not square.
            NonFiniteError: NaN or infinity in `matrix`.
            InputError: Not symmetric.
        Cost:
            O(dim^3), once.
        """
        eigenvalues, vectors = _eigh(matrix, "matrix")
        floor = -rounding_tolerance(matrix.dtype) * float(eigenvalues.abs().max())
        return cls(torch.where((eigenvalues < 0) & (eigenvalues >= floor), 0.0, eigenvalues), vectors)

    @property
    def dim(self) -> int:
        """Size of C, the number of parameters."""
        return len(self.eigenvalues)

    @property
    def mean_eigenvalue(self) -> float:
        """trace(C) / dim."""
        return float(self.eigenvalues.mean())

    def check(self, filter: ResolvableFilter) -> SpectralFilter:
        """The resolved filter, after it accepted this spectrum; see `SpectralFilter.check`."""
        resolved = filter.resolve(mean_eigenvalue=self.mean_eigenvalue)
        resolved.check(float(self.eigenvalues[0]), float(self.eigenvalues[-1]))
        return resolved

    def apply(self, filter: ResolvableFilter, rows: Tensor) -> Tensor:
        """f(C) applied to each row. `rows` (m, dim) -> (m, dim), float64. Raises as `SpectralFilter.check`."""
        resolved = self.check(filter)
        return (self._coordinates(rows, "rows") * resolved(self.eigenvalues)) @ self.vectors.T

    def bilinear(self, filter: ResolvableFilter, x_rows: Tensor, y_rows: Tensor) -> Tensor:
        """X f(C) Y^T. `x_rows` (m, dim), `y_rows` (k, dim) -> (m, k), float64."""
        resolved = self.check(filter)
        left = self._coordinates(x_rows, "x_rows") * resolved(self.eigenvalues)
        return left @ self._coordinates(y_rows, "y_rows").T

    def look_ahead_rows(self, steps: Steps, x_rows: Tensor, g: Tensor, factor: Tensor) -> Tensor:
        """Second term of the exact look-ahead, split over the rows of `factor`; see `DualSpectrum.look_ahead_rows`.

        Args:
            steps: The further training.
            x_rows: (m, dim), query gradients.
            g: (dim,), gradient of the mean train loss at the start.
            factor: (R, dim), rows A with C = A^T A (1/sqrt(n) included); only the rows asked for need be given.
        Returns:
            (m, R), float64: sum_ab (x.u_a) F_ab (A u_a)_r (A u_b)_r (u_b.g).
        Raises:
            NumericalError: The steps diverge on this spectrum.
        Cost:
            O(dim^2 (m + R)).
        """
        (rows,) = self.look_ahead_blocks(steps, x_rows, g, [factor])
        return rows

    def look_ahead_blocks(self, steps: Steps, x_rows: Tensor, g: Tensor, factors: Iterable[Tensor]) -> Iterator[Tensor]:
        """`look_ahead_rows` for one block of the factor's rows after another; the kernel is computed once."""
        require_shape(g, (self.dim,), "g", "the mean gradient (dim,)")
        self.check(Horizon(steps))
        kernel = look_ahead_kernel(self.eigenvalues, self.eigenvalues, steps)
        gamma, queries = self._coordinates(g[None], "g"), self._coordinates(x_rows, "x_rows")
        for factor in factors:
            rows = self._coordinates(factor, "factor")
            yield queries @ (rows * ((rows * gamma) @ kernel.T)).T

    def _coordinates(self, rows: Tensor, name: str) -> Tensor:
        require_shape(rows, (None, self.dim), name, "rows (m, dim)")
        return as_float64(rows).to(self.vectors.device) @ self.vectors


def _eigh(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and eigenvectors in float64, after checks; the two halves are averaged."""
    require_square(matrix, name)
    if len(matrix) == 0:
        raise InputError(f"`{name}` is empty: there is no curvature without train rows.")
    require_finite(matrix, f"`{name}`")
    wide = as_float64(matrix)
    asymmetry, size = float((wide - wide.T).abs().max()), float(wide.abs().max())
    if asymmetry > ASYMMETRY * size:
        raise InputError(
            f"`{name}` must be symmetric; its two halves differ by up to {asymmetry:.6g}, its entries reach {size:.6g}."
        )
    eigenvalues, vectors = torch.linalg.eigh((wide + wide.T) / 2)
    return eigenvalues, vectors
