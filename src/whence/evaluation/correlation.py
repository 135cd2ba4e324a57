"""Cosine, Pearson and Spearman of matching rows, in float64 and without an epsilon.

Where a correlation is undefined (a zero row, a constant row, a NaN) it is NaN, never 0: an epsilon in the denominator
would shrink the correlation of small effects, and effects of 1e-8 are common.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from whence.scores import center

Metric = Callable[[Tensor, Tensor, Sequence[int] | None], Tensor]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of matching rows. `x`, `y` (..., n), broadcast against each other -> (...); NaN for zero rows."""
    x, y = _scaled(x), _scaled(y)
    product = torch.einsum("...i,...i->...", x, y)
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1) * torch.linalg.vector_norm(y, dim=-1)
    return (product / norms).clamp(-1, 1)


def _scaled(x: Tensor) -> Tensor:
    # The square of an entry of 1e-200 would underflow. A zero row becomes 0/0 = NaN, as it should.
    x = x.double()
    return x / x.abs().amax(-1, keepdim=True)


def pearson(x: Tensor, y: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Pearson correlation of matching rows. `x`, `y` (..., n) -> (...); NaN for constant rows.

    Args:
        x: Rows, such as the scores of one query.
        y: Rows, broadcast against `x`.
        sizes: Sizes of the left-out sets: both sides are centered among sets of one size. None is one group.
    """
    return cosine(center(x.double(), sizes), center(y.double(), sizes))


def spearman(x: Tensor, y: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Spearman correlation of matching rows: Pearson of average ranks; arguments as `pearson`.

    With several `sizes` the ranks, over all sets, are of the values centered among sets of one size.
    """
    if sizes is not None and len(set(sizes)) > 1:
        x, y = center(x.double(), sizes), center(y.double(), sizes)
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Tensor) -> Tensor:
    """Ranks from 1 in each row, ties get their mean rank. (..., n) -> (..., n) float64; a row with NaN is all NaN."""
    x = x.double().contiguous()
    ordered = x.sort(-1).values
    below = torch.searchsorted(ordered, x)
    up_to = torch.searchsorted(ordered, x, right=True)
    return ((below + up_to + 1) / 2).double().masked_fill(x.isnan().any(-1, keepdim=True), torch.nan)


METRICS: dict[str, Metric] = {
    "cosine": lambda x, y, sizes: cosine(x, y),  # uncentered, as published: an offset common to all scores costs
    "pearson": pearson,
    "spearman": spearman,
}
