"""Gauss-Newton curvature as a dense matrix over the parameters: for few parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from whence.algebra import PrimalSpectrum, ResolvableFilter, Steps
from whence.curvature.linearized import LinearizedTrain


@final
@dataclass(frozen=True, eq=False)
class PrimalForm:
    """C = A^T A, n_params x n_params, diagonalised."""

    linear: LinearizedTrain

    @property
    def mean_eigenvalue(self) -> float:
        """trace(C) / n_params."""
        return self._spectrum.mean_eigenvalue

    @property
    def largest_eigenvalue(self) -> float:
        """Largest eigenvalue of C."""
        return float(self._spectrum.eigenvalues[-1])

    def solve(self, filter: ResolvableFilter, rows: Tensor) -> Tensor:
        """f(C) applied to rows (m, n_params)."""
        return self._spectrum.apply(filter, rows)

    def scores(self, filter: ResolvableFilter, queries: Tensor, contrasts: Tensor) -> Tensor:
        """a_q^T f(C) J_i^T H t_i for query gradients (m, n_params) and slopes t (n, r): (m, n)."""
        return (self.linear.push(self.solve(filter, queries)) * contrasts).sum(-1)

    def look_ahead_rows(self, steps: Steps, queries: Tensor, gradient: Tensor) -> Tensor:
        """Second term of the exact look-ahead by rows of A: queries (m, n_params), gradient (n_params,) -> (m, n k)."""
        factors = (factor.double() for _, factor in self.linear.factor_blocks())
        return torch.cat(list(self._spectrum.look_ahead_blocks(steps, queries, gradient, factors)), 1)

    @cached_property
    def _spectrum(self) -> PrimalSpectrum:
        n_params = self.linear.n_params
        matrix = torch.zeros(n_params, n_params, dtype=torch.float64, device=self.linear.task.device)
        for _, factor in self.linear.factor_blocks():
            matrix += (factor.T @ factor).double()
        return PrimalSpectrum.from_matrix(matrix)
