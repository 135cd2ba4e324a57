"""Finding wrong labels: do suspicious scores point at the examples whose label was flipped?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whence.checks import require_finite
from whence.errors import InputError, ShapeError
from whence.evaluation.bootstrap import check_settings, interval
from whence.rng import numpy_generator


class MislabelAuc(NamedTuple):
    """Area under the ROC curve with its bootstrap interval."""

    value: float
    low: float
    high: float


def mislabel_auc(
    scores: Tensor, flipped: Tensor, *, n_bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> MislabelAuc:
    """Probability that a flipped example scores higher than a clean one; ties count half.

    Args:
        scores: (n,) suspicion, higher where the label looks wrong. Self-influence is one; where a score says how much
            an example *helps*, pass its negative.
        flipped: (n,) bool, True where the label was flipped.
        n_bootstrap: Replicates; flipped and clean examples are resampled each among themselves.
        confidence: Coverage the interval aims at.
        seed: Of the bootstrap.
    Raises:
        ShapeError: The two do not match.
        InputError: All examples are flipped, or none is.
    Cost:
        One sort of n, and 3 passes over n per replicate.
    """
    check_settings(n_bootstrap, confidence)
    if scores.ndim != 1 or scores.shape != flipped.shape:
        raise ShapeError(
            f"`scores` and `flipped` must both be (n,); got {tuple(scores.shape)} and {tuple(flipped.shape)}."
        )
    if flipped.dtype != torch.bool:
        raise InputError(f"`flipped` must be a bool tensor; got {flipped.dtype}. Use `flipped.bool()`.")
    require_finite(scores, "`scores`", rows="train example")
    # Equal scores share a level; the levels are in the order of the scores.
    levels = np.unique(scores.detach().double().cpu().numpy(), return_inverse=True)[1]
    is_flipped = flipped.cpu().numpy()
    at_flipped, at_clean = levels[is_flipped], levels[~is_flipped]
    if len(at_flipped) == 0 or len(at_clean) == 0:
        raise InputError(f"{len(at_flipped)} of {len(levels)} labels are flipped: the area needs some of both kinds.")
    generator = numpy_generator(seed, "bootstrap", "mislabel")
    n_levels = int(levels.max()) + 1
    replicates = [
        _auc(generator.choice(at_flipped, len(at_flipped)), generator.choice(at_clean, len(at_clean)), n_levels)
        for _ in range(n_bootstrap)
    ]
    low, high = interval(torch.tensor(replicates, dtype=torch.float64), confidence)
    return MislabelAuc(_auc(at_flipped, at_clean, n_levels), low, high)


def _auc(flipped: NDArray[np.int64], clean: NDArray[np.int64], n_levels: int) -> float:
    """Share of (flipped, clean) pairs in the right order, from the level of each example."""
    tied = np.bincount(clean, minlength=n_levels)
    below = np.cumsum(tied) - tied
    return float((below + tied / 2)[flipped].mean() / len(clean))
