"""Gauss-Newton curvature through its products with vectors: for many examples and many parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import final

import torch
from torch import Tensor

from whence.algebra import (
    CallbackOperator,
    FactorOperator,
    Horizon,
    LanczosBasis,
    ResolvableFilter,
    SpectralFilter,
    Steps,
    SymmetricOperator,
    lanczos,
    largest_eigenvalue,
    look_ahead_kernel,
)
from whence.curvature.linearized import LinearizedTrain
from whence.curvature.matrix_free import matrix_free_product, prefers_matrix_free

BASIS_MEMORY = 2 * 2**30  # bytes of Krylov vectors held for one block of queries
REMEMBERED = 2  # blocks of rows whose Krylov spaces are kept: one of queries, and the gradient of the train loss
COLUMNS = 1024  # Krylov vectors the factor is applied to at once: one reading of it serves many queries
EXPECTED_STEPS = 100  # Krylov vectors a query may need, for sizing the blocks
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # relative change of f(C) v; what agreement can tell apart


@final
@dataclass(frozen=True, eq=False)
class KrylovForm:
    """f(C) v by Lanczos with full re-orthogonalisation, a block of queries at a time."""

    linear: LinearizedTrain
    max_steps: int = 400
    steps_taken: list[int] = field(default_factory=list)
    _memory: list[tuple[Tensor, LanczosBasis]] = field(default_factory=list)

    @cached_property
    def mean_eigenvalue(self) -> float:
        """trace(C) / n_params."""
        total = sum(float(a.square().sum(dtype=torch.float64)) for _, a in self.linear.factor_blocks())
        return total / self.linear.n_params

    @cached_property
    def largest_eigenvalue(self) -> float:
        """Largest eigenvalue of C, from below."""
        return largest_eigenvalue(self.operator)

    @cached_property
    def operator(self) -> SymmetricOperator:
        """C as an operator on rows: matrix-free, by a stored factor, or by one that every product computes anew."""
        if prefers_matrix_free(self.linear):
            product_of = partial(matrix_free_product, self.linear)
            return CallbackOperator(self.linear.n_params, product_of, self.linear.dtype, self.linear.task.device)
        if self.linear.fits_memory:
            return FactorOperator(self._factor)

        def product(rows: Tensor) -> Tensor:
            total = torch.zeros_like(rows)
            for factor in self._factors():
                total += (rows @ factor.T) @ factor
            return total

        return CallbackOperator(self.linear.n_params, product, self.linear.dtype, self.linear.task.device)

    @cached_property
    def _factor(self) -> Tensor:
        factor = torch.empty(
            self.linear.n_rows, self.linear.n_params, dtype=self.linear.dtype, device=self.linear.task.device
        )
        for part, rows in self.linear.factor_blocks():
            first = part.start * self.linear.n_roots
            factor[first : first + len(rows)] = rows
        return factor

    def _factors(self) -> Iterator[Tensor]:
        """Rows of A in order: stored, or computed anew."""
        if self.linear.fits_memory:
            yield self._factor
        else:
            yield from (a for _, a in self.linear.factor_blocks())

    def solve(self, filter: ResolvableFilter, rows: Tensor) -> Tensor:
        """f(C) applied to rows (m, n_params).

        Raises:
            ConvergenceError: Lanczos did not reach its tolerance.
        """
        return torch.cat([self._grown(filter, part).apply(self._known(filter)).double() for part in self._parts(rows)])

    def scores(self, filter: ResolvableFilter, queries: Tensor, contrasts: Tensor) -> Tensor:
        """a_q^T f(C) J_i^T H t_i for query gradients (m, n_params) and slopes t (n, r): (m, n)."""
        return (self.linear.push(self.solve(filter, queries)) * contrasts).sum(-1)

    def look_ahead_rows(self, steps: Steps, queries: Tensor, gradient: Tensor) -> Tensor:
        """Second term of the exact look-ahead by rows of A: queries (m, n_params), gradient (n_params,) -> (m, n k).

        The eigenvectors of C are replaced by the Ritz vectors of each query and of the gradient.

        Cost:
            One product of the factor with all Krylov vectors of the queries.
        """
        own = self._grown(Horizon(steps), gradient[None].to(self.linear.dtype))
        s_b, gamma, vectors_b = _ritz_vectors(own)
        at_b = self._factor_times(vectors_b[0])  # (n k, k_b)
        result = []
        for part in self._parts(queries):
            s_a, alpha, vectors_a = _ritz_vectors(self._grown(Horizon(steps), part))
            kernels = [look_ahead_kernel(s.clamp_min(0), s_b[0].clamp_min(0), steps) for s in s_a]
            weights = alpha[:, :, None] * torch.stack(kernels) * gamma[0]  # (m, k_a, k_b)
            size = max(1, COLUMNS // vectors_a.shape[1])
            for own_weights, own_vectors in zip(torch.split(weights, size), torch.split(vectors_a, size), strict=True):
                result.append(self._weighted_rows(own_weights, own_vectors, at_b))
        return torch.cat(result)

    def _weighted_rows(self, weights: Tensor, vectors: Tensor, at_b: Tensor) -> Tensor:
        """sum_ab weights_ab (A u_a)_r (A u_b)_r for several queries: (m, k_a, k_b), (m, k_a, n_params) -> (m, n k)."""
        at_a = self._factor_times(vectors.flatten(0, 1)).reshape(-1, *weights.shape[:2])  # (n k, m, k_a)
        return torch.einsum("rma,mab,rb->mr", at_a, weights, at_b)

    def _factor_times(self, vectors: Tensor) -> Tensor:
        """A v for rows v (l, n_params): (n k, l) float64."""
        return torch.cat([(a @ vectors.to(a.dtype).T).double() for a in self._factors()])

    def _known(self, filter: ResolvableFilter) -> SpectralFilter:
        return filter.resolve(mean_eigenvalue=self.mean_eigenvalue if "mean_eigenvalue" in filter.needs else None)

    def _grown(self, filter: ResolvableFilter, rows: Tensor) -> LanczosBasis:
        """Krylov spaces of the rows, grown far enough for the filter; those of the last few blocks are kept."""
        known = next((basis for start, basis in self._memory if torch.equal(start, rows)), None)
        result = lanczos(
            self.operator,
            rows,
            [self._known(filter)],
            tolerance=TOLERANCE[self.linear.dtype],
            max_steps=self.max_steps,
            basis=known,
        )
        self.steps_taken.append(result.steps)
        if known is None:
            self._memory.append((rows, result.basis))
            del self._memory[:-REMEMBERED]
        return result.basis

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        size = max(1, BASIS_MEMORY // (EXPECTED_STEPS * self.linear.n_params * self.linear.dtype.itemsize))
        return torch.split(rows.to(self.linear.dtype), size)


def _ritz_vectors(basis: LanczosBasis) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values (m, k), coefficients of the start row (m, k) and vectors (m, k, dim)."""
    values, coefficients, rotation = basis.ritz()
    vectors = rotation.transpose(1, 2).to(basis.basis.dtype) @ basis.basis.transpose(0, 1)
    return values, coefficients, vectors
