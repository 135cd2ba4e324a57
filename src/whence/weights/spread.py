"""How far what contributions add up to lies from its mean over the train set, in one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whence.weights.by_group import Contributions
from whence.weights.stream import ContributionStream


def centered_squares(found: Contributions | ContributionStream, rows_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums over queries and train examples of squares around each query's mean over the train set.

    Args:
        found: Contributions, in memory or streamed.
        rows_of: What is summed: a block of contributions (n_groups, n_query, b) float64 to rows (r, n_query, b).
    Returns:
        (r,) float64.
    """
    stream = ContributionStream.of(found) if isinstance(found, Contributions) else found
    sums = squares = torch.zeros((), dtype=torch.float64)  # of the shape of the first rows from there on
    shift: Tensor | None = None  # near the mean, so that differences of squares keep their digits
    for _, block in stream.blocks():
        rows = rows_of(block.cpu().double())
        shift = rows.mean(2, keepdim=True) if shift is None else shift
        rows = rows - shift
        sums = sums + rows.sum(2)
        squares = squares + rows.square().sum(2)
    total: Tensor = (squares - sums.square() / stream.shape[1]).clamp_min(0).sum(1)
    return total
