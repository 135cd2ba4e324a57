"""Kept sets: which train examples each retraining uses, for linear datamodeling scores."""

from __future__ import annotations

import torch

from whence.checks import require_count
from whence.errors import InputError
from whence.rng import torch_generator


def random_kept_sets(n_train: int, count: int, *, share: float = 0.5, seed: int = 0) -> list[tuple[int, ...]]:
    """`count` random sets of `round(share * n_train)` train positions, each in ascending order.

    All sets have one size, so that a constant added to all scores of a query moves every prediction alike.

    Raises:
        InputError: `share` keeps nothing or everything.
    Reference:
        Park et al. (2023), arXiv:2303.14186, definition of the linear datamodeling score; half of the data.
    """
    require_count(n_train, "n_train")
    require_count(count, "count")
    size = round(share * n_train) if 0 < share < 1 else 0
    if not 0 < size < n_train:
        raise InputError(f"`share` must keep some of the {n_train} train examples and leave out others; got {share!r}.")
    generator = torch_generator(seed, "kept sets", size)
    draws = (torch.randperm(n_train, generator=generator)[:size].sort().values for _ in range(count))
    return [tuple(draw.tolist()) for draw in draws]
