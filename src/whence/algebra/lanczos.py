"""f(C) v by Lanczos, for many vectors at once and any number of filters from one Krylov space each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.algebra.filters import ResolvableFilter, SpectralFilter
from whence.algebra.operators import SymmetricOperator
from whence.algebra.precision import as_float64, require_shape, row_norms, row_products
from whence.algebra.spectral import rounding_tolerance
from whence.checks import require_count, require_finite, require_positive
from whence.errors import ConvergenceError, InputError, NumericalError
from whence.rng import torch_generator

# A next basis vector shorter than this many units of rounding of the operator's size is noise: the space is complete.
_BREAKDOWN_UNITS = 100
# Steps between two looks at the convergence of the filters.
_STEPS_PER_CHECK = 4
# Checks in a row that must agree: one alone is fooled where convergence pauses.
_AGREEING_CHECKS = 2


@final
class LanczosBasis:
    """One Krylov space a row, all grown together, with full re-orthogonalisation.

    A row whose space is complete (an invariant subspace, or a zero row) stops there: its further basis vectors are
    zero and weightless in every result.

    Attributes:
        norms: (m,), norm of each row, float64.
        steps: k, the number of basis vectors a row.
    Cost:
        A step is one application of the operator to m rows and O(m k dim); memory k * m * dim.
    Reference:
        Golub and Van Loan, Matrix Computations, 4th edition, section 10.3; f(C) v after Saad (1992),
        doi:10.1137/0729014.
    """

    def __init__(self, operator: SymmetricOperator, rows: Tensor) -> None:
        require_shape(rows, (None, operator.dim), "rows", "start vectors (m, dim)")
        require_finite(rows, "`rows`", rows="row")
        self._operator = operator
        self.norms = row_norms(rows)
        self._alive = self.norms > 0
        self._next = rows / self.norms.where(self._alive, 1.0)[:, None].to(rows.dtype)
        self._vectors = rows.new_empty(len(rows), 0, operator.dim)  # (m, capacity, dim)
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._size = torch.zeros_like(self.norms)  # of the operator, as seen from each row
        self._decomposition: tuple[Tensor, Tensor] | None = None

    @property
    def steps(self) -> int:
        """k, the number of basis vectors a row."""
        return len(self._alphas)

    @property
    def basis(self) -> Tensor:
        """(k, m, dim), orthonormal for each row."""
        return self._vectors[:, : self.steps].transpose(0, 1)

    @property
    def alphas(self) -> Tensor:
        """(k, m), diagonals of the tridiagonal matrices, float64."""
        return torch.stack(self._alphas)

    @property
    def betas(self) -> Tensor:
        """(k, m), off-diagonals; the last couples to the vector that the next step would add."""
        return torch.stack(self._betas)

    @property
    def complete(self) -> Tensor:
        """(m,), rows whose Krylov space cannot grow; every filter of them is exact."""
        return ~self._alive

    def extend(self, n_steps: int) -> None:
        """Add `n_steps` basis vectors to every row. Never more than `dim` in all."""
        require_count(n_steps, "n_steps")
        if self.steps + n_steps > self._operator.dim:
            raise InputError(
                f"A Krylov space has at most dim = {self._operator.dim} vectors; {self.steps} + {n_steps} asked for."
            )
        self._reserve(self.steps + n_steps)
        for _ in range(n_steps):
            self._step()
        self._decomposition = None

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values and what turns them into vectors, float64.

        Returns:
            values (m, k), ascending; coefficients (m, k), of the row along its Ritz vectors (norm included); rotation
            (m, k, k), whose column j writes Ritz vector j in the basis. So f(C) v is basis^T rotation (f(values) *
            coefficients). Of a complete row some values are fill-ins with coefficient 0.
        """
        if self._decomposition is None:
            self._decomposition = torch.linalg.eigh(self._tridiagonal())
        values, rotation = self._decomposition
        return values, self.norms[:, None] * rotation[:, 0], rotation

    def coefficients(self, filter: SpectralFilter, steps: int | None = None) -> Tensor:
        """f(C) v in the basis, (m, k), float64; with `steps`, as it was after so many steps, (m, steps)."""
        if steps is None or steps == self.steps:
            values, start, rotation = self.ritz()
        else:
            values, rotation = torch.linalg.eigh(self._tridiagonal()[:, :steps, :steps])
            start = self.norms[:, None] * rotation[:, 0]
        # A fill-in or an unreached direction has weight 0, whatever the filter says there.
        weighted = torch.where(start == 0, 0.0, filter(values) * start)
        return (rotation @ weighted[..., None])[..., 0]

    def apply(self, filter: ResolvableFilter) -> Tensor:
        """f(C) applied to each row, (m, dim), in the dtype of the rows.

        Directions outside the range of C are met like any other: there f(0) acts.
        """
        coefficients = self.coefficients(filter.resolve()).to(self._vectors.dtype)
        return (coefficients[:, None] @ self._vectors[:, : self.steps])[:, 0]

    def _step(self) -> None:
        k = self.steps
        self._vectors[:, k] = self._next
        image = self._operator.apply(self._next)
        alpha = row_products(self._next, image)
        basis = self._vectors[:, : k + 1]
        for _ in range(2):  # once leaves what cancellation hides, twice is enough
            image = image - ((basis @ image[..., None]).transpose(1, 2) @ basis)[:, 0]
        beta = row_norms(image)
        self._size = torch.maximum(self._size, torch.maximum(alpha.abs(), beta))
        # Fill-ins of complete rows repeat the first diagonal: inside the spectrum, so that no check trips over them.
        self._alphas.append(alpha if k == 0 else torch.where(self._alive, alpha, self._alphas[0]))
        noise = _BREAKDOWN_UNITS * torch.finfo(image.dtype).eps * self._size
        self._alive = self._alive & (beta > noise) & (k + 1 < self._operator.dim)
        beta = torch.where(self._alive, beta, 0.0)
        self._betas.append(beta)
        scale = torch.where(self._alive, 1 / beta.where(self._alive, 1.0), 0.0)
        self._next = image * scale[:, None].to(image.dtype)

    def _reserve(self, n_vectors: int) -> None:
        """Room for `n_vectors`, at least doubling, so that growth copies each vector only a few times."""
        capacity = self._vectors.shape[1]
        if n_vectors <= capacity:
            return
        grown = min(max(n_vectors, 2 * capacity), self._operator.dim)
        vectors = self._vectors.new_zeros(self._vectors.shape[0], grown, self._vectors.shape[2])
        vectors[:, :capacity] = self._vectors
        self._vectors = vectors

    def _tridiagonal(self) -> Tensor:
        """(m, k, k)."""
        if not self._alphas:
            raise InputError("The Lanczos basis is empty. Call `extend` first.")
        off = self.betas[:-1].T
        return torch.diag_embed(self.alphas.T) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)


@final
@dataclass(frozen=True, eq=False)
class LanczosResult:
    """What `lanczos` found.

    Attributes:
        solutions: (n_filters, m, dim), f(C) of each row.
        steps: Basis vectors a row.
        estimated_error: (n_filters, m), relative change of f(C) v over the last checks, float64: an estimate from
            the course of convergence, not a bound; 0 where the Krylov space is complete.
        converged: (n_filters, m).
        basis: To be extended, or used with further filters.
    """

    solutions: Tensor
    steps: int
    estimated_error: Tensor
    converged: Tensor
    basis: LanczosBasis


def lanczos(
    operator: SymmetricOperator,
    rows: Tensor,
    filters: Sequence[ResolvableFilter],
    *,
    tolerance: float = 1e-6,
    max_steps: int = 300,
    allow_unconverged: bool = False,
    basis: LanczosBasis | None = None,
) -> LanczosResult:
    """f(C) v for each row v and each filter f, growing the Krylov spaces until all have converged.

    Args:
        operator: C, symmetric.
        rows: (m, dim), on the operator's device and in its dtype.
        filters: One or more, with absolute numbers (a relative damping is resolved before).
        tolerance: Relative change of f(C) v between checks four steps apart, twice in a row.
        max_steps: Most basis vectors a row; never more than dim.
        allow_unconverged: Return what was reached instead of raising.
        basis: Krylov spaces of the same operator and rows from an earlier call, to be grown further.
    Raises:
        ConvergenceError: The tolerance was not reached.
        NumericalError: A filter refuses the Ritz values found so far, which lie inside the spectrum.
    Cost:
        One application of the operator to m rows a step; see `LanczosBasis`.
    """
    require_positive(tolerance, "tolerance")
    require_count(max_steps, "max_steps")
    if not filters:
        raise InputError("`filters` must hold at least one filter; got none.")
    resolved = [filter.resolve() for filter in filters]
    basis = LanczosBasis(operator, rows) if basis is None else basis
    error, limit = _grow(basis, resolved, tolerance, min(max_steps, operator.dim))
    converged = error <= tolerance
    if not allow_unconverged and not bool(converged.all()):
        raise ConvergenceError(
            f"Lanczos left {int((~converged).sum())} of {converged.numel()} vectors above the tolerance "
            f"{tolerance:.3g}: the worst estimated error is {float(error.max()):.3g} after {basis.steps} steps "
            f"(limit {limit}). Use more `max_steps`, a shorter horizon or larger damping, a looser tolerance, or "
            "`allow_unconverged=True`."
        )
    solutions = torch.stack([basis.apply(filter) for filter in resolved])
    return LanczosResult(solutions, basis.steps, error, converged, basis)


def largest_eigenvalue(operator: SymmetricOperator, *, steps: int = 50, seed: int = 0) -> float:
    """The largest eigenvalue, from below: the top Ritz value of a random start vector.

    Within a fraction of a percent after 50 steps unless the top of the spectrum is crowded; exact for dim <= steps.
    """
    require_count(steps, "steps")
    start = torch.randn(1, operator.dim, generator=torch_generator(seed, "largest eigenvalue"), dtype=torch.float64)
    basis = LanczosBasis(operator, start.to(operator.device, operator.dtype))
    basis.extend(min(steps, operator.dim))
    return float(basis.ritz()[0].max())


def _grow(basis: LanczosBasis, filters: Sequence[SpectralFilter], tolerance: float, limit: int) -> tuple[Tensor, int]:
    """Extend until the last changes of every filter are small; the estimated errors (n_filters, m) and the limit."""
    while True:
        if basis.steps:
            _check_filters(basis, filters)
            error = torch.stack([_last_changes(basis, filter) for filter in filters]).masked_fill(basis.complete, 0.0)
            if bool((error <= tolerance).all()) or basis.steps >= limit:
                return error, limit
        # Looking costs an eigen-decomposition of the whole tridiagonal: less often as it grows.
        basis.extend(min(max(_STEPS_PER_CHECK, basis.steps // 8), limit - basis.steps))


def _last_changes(basis: LanczosBasis, filter: SpectralFilter) -> Tensor:
    """Largest relative change of f(C) v over the last checks, (m,); infinite while there are too few steps."""
    marks = [basis.steps - _STEPS_PER_CHECK * k for k in range(_AGREEING_CHECKS, -1, -1)]
    if marks[0] < 1:
        return as_float64(basis.norms).new_full((len(basis.norms),), math.inf)
    course = [basis.coefficients(filter, steps) for steps in marks]
    changes = [_relative_change(before, after) for before, after in itertools.pairwise(course)]
    return torch.stack(changes).amax(0)


def _relative_change(previous: Tensor, current: Tensor) -> Tensor:
    """|current - previous| / |current| in the orthonormal basis, where `previous` has fewer coefficients."""
    shorter = torch.nn.functional.pad(previous, (0, current.shape[-1] - previous.shape[-1]))
    size, change = row_norms(current), row_norms(current - shorter)
    return torch.where(change == 0, 0.0, change / size)


def _check_filters(basis: LanczosBasis, filters: Sequence[SpectralFilter]) -> None:
    """Ritz values lie inside the spectrum, so a filter that refuses them would refuse the operator too."""
    values = basis.ritz()[0]
    if not bool(torch.isfinite(values).all()):
        raise NumericalError("The operator gave NaN or infinite values. Check the model and its gradients.")
    low, high = float(values.min()), float(values.max())
    if -rounding_tolerance(basis.basis.dtype) * max(abs(low), abs(high)) <= low < 0:
        low = 0.0  # rounding of a singular operator
    for filter in filters:
        filter.check(low, high)
