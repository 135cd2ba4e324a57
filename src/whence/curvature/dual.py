"""Gauss-Newton curvature through the Gram matrix of its rows: for few examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from whence.algebra import DualSpectrum, ResolvableFilter, Steps
from whence.curvature.linearized import LinearizedTrain


@final
@dataclass(frozen=True, eq=False)
class DualForm:
    """C = A^T A through the eigenvalues of A A^T, (n k) x (n k)."""

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
        """f(C) applied to rows (m, n_params): f(0) x - A^T U h(s) U^T A x."""
        known = self._spectrum.check(filter)
        coordinates = self._spectrum.vectors.T @ self._factor_times(rows)  # (R, m)
        weighted = self._spectrum.vectors @ (known.complement(self._spectrum.eigenvalues)[:, None] * coordinates)
        return known.at_zero() * rows.double() - self._factor_transposed(weighted)

    def scores(self, filter: ResolvableFilter, queries: Tensor, contrasts: Tensor) -> Tensor:
        """a_q^T f(C) J_i^T H t_i for query gradients (m, n_params) and slopes t (n, r): (m, n)."""
        pushed = self.linear.push(queries)  # (m, n, r)
        inner = (pushed * contrasts).sum(-1)
        return self._spectrum.bilinear(filter, inner, self._rooted(pushed), self._factor_of_gradients(contrasts))

    def look_ahead_rows(self, steps: Steps, queries: Tensor, gradient: Tensor) -> Tensor:
        """Second term of the exact look-ahead by rows of A: queries (m, n_params), gradient (n_params,) -> (m, n k)."""
        at_queries = self._factor_times(queries)
        return self._spectrum.look_ahead_rows(steps, at_queries, self._factor_times(gradient[None])[:, 0])

    @cached_property
    def _gram(self) -> Tensor:
        """H^T J_i J_k^T H, (n r, n r) float64."""
        r = self.linear.n_contrasts
        size = self.linear.n_train * r
        gram = torch.empty(size, size, dtype=torch.float64, device=self.linear.task.device)
        for left, rows in self.linear.blocks():
            for right, others in self.linear.blocks():
                product = rows.flatten(0, 1) @ others.flatten(0, 1).T
                gram[left.start * r : left.stop * r, right.start * r : right.stop * r] = product.double()
        return gram

    @cached_property
    def _spectrum(self) -> DualSpectrum:
        n, r = self.linear.n_train, self.linear.n_contrasts
        roots = self.linear.roots / n**0.5
        blocks = self._gram.reshape(n, r, n, r)
        rooted = torch.einsum("iab,iajc,jcd->ibjd", roots, blocks, roots)
        return DualSpectrum.from_gram(rooted.flatten(2).flatten(0, 1), self.linear.n_params)

    def _rooted(self, pushed: Tensor) -> Tensor:
        """A x from H^T J x: (m, n, r) -> (n k, m)."""
        rooted = torch.einsum("iab,mia->ibm", self.linear.roots / self.linear.n_train**0.5, pushed)
        return rooted.reshape(self.linear.n_rows, -1)

    def _factor_times(self, rows: Tensor) -> Tensor:
        return self._rooted(self.linear.push(rows))

    def _factor_of_gradients(self, contrasts: Tensor) -> Tensor:
        """A b_i for all train gradients b_i = J_i^T H t_i: (n k, n)."""
        n, r = self.linear.n_train, self.linear.n_contrasts
        columns = torch.einsum("xia,ia->xi", self._gram.reshape(n * r, n, r), contrasts)
        return self._rooted(columns.reshape(n, r, n).permute(2, 0, 1))

    def _factor_transposed(self, values: Tensor) -> Tensor:
        """A^T y for columns y (n k, m): (m, n_params)."""
        n, k = self.linear.n_train, self.linear.n_roots
        weights = torch.einsum("iab,ibm->mia", self.linear.roots / n**0.5, values.reshape(n, k, -1))
        return self.linear.pull(weights).double()
