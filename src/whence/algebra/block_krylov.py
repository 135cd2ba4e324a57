"""Shifted systems of many right-hand sides from one block Krylov space that all of them share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.algebra.cg import CGResult, Progress, checked_systems
from whence.algebra.operators import SymmetricOperator
from whence.algebra.precision import as_float64, row_norms
from whence.checks import require_count
from whence.errors import ConvergenceError, NotPositiveDefiniteError, NumericalError

# The space is grown until the estimated residuals are this part of the tolerance: they drift a little from the true.
_AIM = 0.5
# Memory of the basis, unless `max_basis` is given.
_BASIS_BYTES = 2**30
# A unit direction that keeps less than this when it is orthogonalised again was rounding, not a direction.
_KEPT_AGAIN = 0.5
# Corrections tried where rounding of the small matrices, and not the space, leaves a system above the tolerance.
_CORRECTIONS = 2


def block_krylov(
    operator: SymmetricOperator,
    rows: Tensor,
    shifts: Sequence[float],
    *,
    tolerance: float = 1e-5,
    max_basis: int | None = None,
    allow_unconverged: bool = False,
    progress: Progress | None = None,
) -> CGResult:
    """Solve (C + shift) x = row for every row and every shift in one space, the sum of the rows' Krylov spaces.

    Solutions are those of Galerkin: their residuals are orthogonal to the space. Each step adds the directions of the
    residuals still too large, of each row at its worst shift, so that solved rows and what rows have in common cost
    nothing. The more rows, the fewer products a row, compared with `conjugate_gradient`; for a few rows, or where the
    basis outgrows the memory, use that. The residuals reported are computed anew at the end.

    Args:
        operator: C; C plus the smallest shift must be positive definite.
        rows: (m, dim), on the operator's device and in its dtype. Zero and dependent rows are welcome.
        shifts: Dampings, one or more, in any order.
        tolerance: Residual over the norm of the row.
        max_basis: Most vectors in the space; as many as fit 1 GiB if not given, and never more than dim.
        allow_unconverged: Return what was reached instead of raising.
        progress: Called after each block product with its number and the worst estimated relative residual.
    Returns:
        `iterations` counts block products, each of at most m rows.
    Raises:
        ConvergenceError: The tolerance was not reached; the message has residual and size of the basis.
        NotPositiveDefiniteError: C plus the smallest shift is not positive definite in the space.
        NumericalError: The operator gave NaN or infinity.
    Cost:
        The operator applied once to each basis vector, and to m rows a shift at the end; with k basis vectors
        O(k^2 dim) to keep them orthogonal and, a step, O(n_shifts k^3) in float64. Memory k + O(m) vectors and the
        solutions.
    Reference:
        O'Leary (1980), doi:10.1016/0024-3795(80)90247-5, whose block conjugate gradients give the same solutions in
        exact arithmetic while no direction is left out.
    """
    checked_systems(operator, rows, shifts, tolerance)
    limit = _most_that_fit(operator) if max_basis is None else max_basis
    require_count(limit, "max_basis")
    norms = row_norms(rows)
    space = _Space(rows / norms.where(norms > 0, 1.0)[:, None].to(rows))
    aim, iterations = _AIM * tolerance, 0
    coefficients, residuals = space.solve(shifts)
    while space.size < limit and bool((row_norms(residuals) > aim).any()):
        space.grow(operator, residuals, aim, limit - space.size)
        coefficients, residuals = space.solve(shifts)
        iterations += 1
        if progress is not None:
            progress(iterations, float(row_norms(residuals).max()))
    solutions = space.combine(coefficients * as_float64(norms)[:, None])
    full = bool((row_norms(residuals) > aim).any())
    corrections = 0 if full else _CORRECTIONS
    left = [
        _correct(operator, space, rows, shift, x, tolerance * norms, corrections)
        for shift, x in zip(shifts, solutions, strict=True)
    ]
    relative = torch.where(norms > 0, torch.stack(left) / norms, 0.0)
    converged = relative <= tolerance
    if not allow_unconverged and not bool(converged.all()):
        raise _not_converged(relative, tolerance, iterations, space.size, full)
    return CGResult(solutions, relative, iterations, converged)


class _Space:
    """An orthonormal basis V of the space, and one, Q, of what the rows and C V have outside it.

    With rows = inside V + outside Q and C V = projected V + coupling Q, the residual of x = y V for a shift is
    (inside - y (projected + shift)) V + (outside - y coupling) Q, and Galerkin's y makes the first part zero. Q never
    has more vectors than there are rows. V and Q keep the dtype of the rows, coefficients are float64.

    Args:
        rows: (m, dim), of norm 1 or 0.
    """

    def __init__(self, rows: Tensor) -> None:
        outer, triangle = torch.linalg.qr(rows.T)
        self._basis: list[Tensor] = []  # V, in the blocks it grew by
        self._outer = outer.T  # Q
        self._outside = as_float64(triangle.T)
        self._inside = self._outside[:, :0]
        self._projected = self._outside.new_zeros(0, 0)
        self._coupling = self._outside.new_zeros(0, len(self._outer))

    @property
    def size(self) -> int:
        """k, the number of basis vectors."""
        return len(self._projected)

    def solve(self, shifts: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Galerkin's solutions in V, (n_shifts, m, k), and their residuals in Q, (n_shifts, m, q)."""
        coefficients = torch.stack([self._solve_one(shift, self._inside) for shift in shifts])
        return coefficients, self._outside - coefficients @ self._coupling

    def correction(self, residuals: Tensor, shift: float) -> Tensor:
        """What to add to solutions with these true residuals, as far as it lies in the space. (m, dim) -> (m, dim)."""
        return self.combine(self._solve_one(shift, self._in_basis(residuals)))

    def combine(self, coefficients: Tensor) -> Tensor:
        """The vectors with these coefficients in V. (..., k) -> (..., dim)."""
        total: Tensor = self._outer.new_zeros(*coefficients.shape[:-1], self._outer.shape[1])
        start = 0
        for block in self._basis:
            total += coefficients[..., start : start + len(block)].to(block) @ block
            start += len(block)
        return total

    def grow(self, operator: SymmetricOperator, residuals: Tensor, aim: float, room: int) -> None:
        """Move the directions that matter to residuals above `aim` from Q to V, `room` at most, and apply C to them.

        Args:
            operator: C.
            residuals: (n_shifts, m, q), as `solve` gave them.
            aim: Relative residual at which a row needs nothing more.
            room: Most vectors to add.
        """
        rotation, n_new = _leading_directions(residuals, aim)
        n_new = min(n_new, room)
        # Two products, because slices of one would keep all of it in memory.
        new, self._outer = (part.to(self._outer) @ self._outer for part in (rotation[:n_new], rotation[n_new:]))
        outside, coupling = self._outside @ rotation.T, self._coupling @ rotation.T
        self._inside = torch.cat([self._inside, outside[:, :n_new]], 1)
        self._basis.append(new)
        image = operator.apply(new)
        self._project(image)
        added = _orthonormal_rest(image, [*self._basis, self._outer])
        self._outer = torch.cat([self._outer, added])
        n_added = len(added)
        self._outside = torch.nn.functional.pad(outside[:, n_new:], (0, n_added))
        coupling = torch.nn.functional.pad(coupling[:, n_new:], (0, n_added))
        self._coupling = torch.cat([coupling, as_float64(image @ self._outer.T)])

    def _project(self, image: Tensor) -> None:
        """Add V C V^T of the last block, whose `image` under C is given."""
        strip = self._in_basis(image)
        if not bool(torch.isfinite(strip).all()):
            raise NumericalError("The operator gave NaN or infinite values. Check the model and its gradients.")
        old, corner = strip[:, : self.size], strip[:, self.size :]
        self._projected = torch.cat(
            [torch.cat([self._projected, old.T], 1), torch.cat([old, (corner + corner.T) / 2], 1)]
        )

    def _in_basis(self, rows: Tensor) -> Tensor:
        """Coefficients along V. (m, dim) -> (m, size), float64."""
        return torch.cat([as_float64(rows @ block.T) for block in self._basis], 1)

    def _solve_one(self, shift: float, inside: Tensor) -> Tensor:
        system = self._projected + shift * torch.eye(self.size).to(self._projected)
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            lowest = float(torch.linalg.eigvalsh(self._projected)[0])
            raise NotPositiveDefiniteError(
                f"A direction of curvature {lowest + shift:.6g} (shift {shift:.6g} included) was met: the operator is "
                f"not positive definite. Use a damping well above {-lowest:.6g}, or Lanczos."
            )
        return torch.cholesky_solve(inside.T, factor).T


def _correct(
    operator: SymmetricOperator,
    space: _Space,
    rows: Tensor,
    shift: float,
    solutions: Tensor,
    targets: Tensor,
    corrections: int,
) -> Tensor:
    """Norms of the true residuals, (m,); before, `solutions` above their targets are corrected in place if it helps."""
    residuals = rows - operator.apply(solutions) - shift * solutions
    for _ in range(corrections):
        bad = (row_norms(residuals) > targets).nonzero().flatten()
        if len(bad) == 0:
            break
        corrected = solutions[bad] + space.correction(residuals[bad], shift)
        left = rows[bad] - operator.apply(corrected) - shift * corrected
        better = row_norms(left) < row_norms(residuals[bad])
        solutions[bad[better]], residuals[bad[better]] = corrected[better], left[better]
    return row_norms(residuals)


def _leading_directions(residuals: Tensor, aim: float) -> tuple[Tensor, int]:
    """A rotation of Q, (q, q), with the directions that matter to rows above `aim` first, and how many they are."""
    sizes = row_norms(residuals)
    worst = residuals[sizes.argmax(0), torch.arange(residuals.shape[1], device=residuals.device)]
    unsolved = worst[sizes.amax(0) > aim]
    _, singular, rotation = torch.linalg.svd(unsolved)
    # All the directions left out take part in one row by at most the largest singular value left out. One is always
    # above the aim, as a row is, but for rounding.
    return rotation, max(1, int((singular > aim).sum()))


def _orthonormal_rest(rows: Tensor, bases: list[Tensor]) -> Tensor:
    """An orthonormal basis of what `rows` have outside the span of orthonormal `bases`, rounding left out."""
    threshold = torch.finfo(rows.dtype).eps * float(row_norms(rows).max())
    for again in (False, True):  # once leaves what cancellation hides, twice is enough
        for basis in bases:
            rows = rows - (rows @ basis.T) @ basis
        directions, triangle = torch.linalg.qr(rows.T)
        _, singular, rotation = torch.linalg.svd(as_float64(triangle.T))
        kept = rotation[: int((singular > (_KEPT_AGAIN if again else threshold)).sum())]
        rows = kept.to(rows) @ directions.T
    return rows


def _most_that_fit(operator: SymmetricOperator) -> int:
    """Basis vectors that fit the memory a basis may take by default."""
    vector_bytes = operator.dim * torch.finfo(operator.dtype).bits // 8
    return max(1, min(operator.dim, _BASIS_BYTES // vector_bytes))


def _not_converged(residuals: Tensor, tolerance: float, iterations: int, size: int, full: bool) -> ConvergenceError:
    advice = (
        "`conjugate_gradient`, which keeps no basis, more `max_basis`, "
        if full
        else "float64 rows and operator (rounding stopped it), "
    )
    return ConvergenceError(
        f"The block Krylov space left {int((~(residuals <= tolerance)).sum())} of {residuals.numel()} systems above "
        f"the tolerance {tolerance:.3g}: the worst relative residual is {float(residuals.max()):.3g} after "
        f"{iterations} block products, with {size} basis vectors. Use {advice}a larger damping, a looser tolerance, "
        "or `allow_unconverged=True`."
    )
