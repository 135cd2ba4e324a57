"""Sums over train examples of contributions and of their products, a block at a time."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

QUERIES = 8  # in one batch of products: what it reads and writes stays in a processor's cache
CHUNK = 64  # groups of the left side of one product, so that most of a symmetric matrix is computed once


@final
class Sums:
    """Sums around a point near the mean, so that sums of squares keep their digits; added up in float64.

    The point is zero, or the mean of the first block where that is far from zero.

    Args:
        first: Contributions (n_groups, n_query, b) of the first block, which `add` is still to get.
    Cost:
        n_query n_train n_groups^2 multiplications, five eighths of it for many groups, in the precision of the blocks.
        Memory n_query n_groups^2 float64.
    """

    def __init__(self, first: Tensor) -> None:
        n_groups, n_query, _ = first.shape
        self.n = 0
        mean = first.mean(2).double().T
        # Where it is near, sums of squares around zero are at most twice as large as those around the mean.
        far = mean.square() > first.var(2, correction=0).T
        self._shift = mean * float(far.any())  # (n_query, n_groups)
        self._sum = torch.zeros(n_query, n_groups, dtype=torch.float64)
        self._products = torch.zeros(n_query, n_groups, n_groups, dtype=torch.float64)  # above the diagonal blocks

    def add(self, block: Tensor) -> None:
        """Add contributions (n_groups, n_query, b)."""
        for start in range(0, block.shape[1], QUERIES):
            part = slice(start, start + QUERIES)
            rows = block[:, part].transpose(0, 1)
            if bool(self._shift.any()):
                rows = rows - self._shift[part, :, None].to(block.dtype)
            self._sum[part] += rows.sum(2)
            self._add_products(part, rows)
        self.n += block.shape[2]

    def _add_products(self, part: slice, rows: Tensor) -> None:
        for start in range(0, rows.shape[1], CHUNK):
            left, right = rows[:, start : start + CHUNK], rows[:, start:].transpose(1, 2)
            self._products[part, start : start + CHUNK, start:] += left @ right

    def around_means(self, center: bool, queries: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Means of what has been added, and sums of products around them; of all queries or those at some positions.

        Args:
            center: Around the means; else the means are given as zero, and the sums are those around zero.
            queries: Positions.
        Returns:
            (n_query, n_groups), and (n_query, n_groups, n_groups) that are symmetric; both float64.
        """
        chosen = range(len(self._sum)) if queries is None else queries
        means = (self._shift + self._sum / self.n)[list(chosen)] * float(center)
        gram = torch.empty(len(chosen), *self._products.shape[1:], dtype=torch.float64)
        for row, q in enumerate(chosen):
            torch.triu(self._products[q], out=gram[row])
            gram[row] += gram[row].triu(1).T
            mean, off = self._sum[q] / self.n, means[row] - self._shift[q]  # both from the shift on
            cross = torch.outer(mean, off)
            gram[row] -= self.n * (cross + cross.T - torch.outer(off, off))
        return means, gram
