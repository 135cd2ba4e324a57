"""Resampling shared by the metrics: counts of what is drawn, and intervals from replicates."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from whence.checks import require_count
from whence.errors import InputError
from whence.rng import numpy_generator


def resample_counts(n: int, n_replicates: int, seed: int, *names: object) -> Tensor:
    """How often each of `n` items is drawn when `n` are drawn with replacement. -> (n_replicates, n) float64.

    The named stream makes replicate b of one metric, method or point draw the same items as replicate b of another.
    """
    counts = numpy_generator(seed, "bootstrap", *names).multinomial(n, np.full(n, 1 / n), size=n_replicates)
    return torch.from_numpy(counts).double()


def resample_positions(n: int, n_replicates: int, seed: int, *names: object) -> Tensor:
    """Positions of `n` items drawn with replacement from `n`. -> (n_replicates, n) int64; streams as above."""
    return torch.from_numpy(numpy_generator(seed, "bootstrap", *names).integers(0, n, size=(n_replicates, n)))


def seed_weights(n_seeds: int, n_replicates: int, seed: int) -> Tensor:
    """Random weights of the seeds, each row summing to 1. -> (n_replicates, n_seeds) float64

    Mean and covariance are those of the shares of seeds drawn with replacement, but all rows have one norm. With drawn
    shares the effective number of seeds, and with it the noise of the averaged outcomes and the height of every
    correlation, would differ from replicate to replicate: with few seeds that artifact makes intervals up to 6 times
    too wide (3 seeds, strong scores).
    """
    if n_seeds == 1:
        return torch.ones(n_replicates, 1, dtype=torch.float64)
    normal = numpy_generator(seed, "bootstrap", "seeds").standard_normal((n_replicates, n_seeds))
    away = normal - normal.mean(1, keepdims=True)
    away *= math.sqrt(n_seeds - 1) / n_seeds / np.linalg.norm(away, axis=1, keepdims=True)
    return torch.from_numpy(1 / n_seeds + away).double()


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the last dimension, NaN entries left out. `values` and `weights` (..., n) -> (...)."""
    weights = weights * ~values.isnan()
    return (values.nan_to_num() * weights).sum(-1) / weights.sum(-1)


def interval(replicates: Tensor, confidence: float) -> tuple[float, float]:
    """Percentile interval of (n_replicates,), NaN replicates left out; NaN where none is left."""
    if bool(replicates.isnan().all()):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = torch.nanquantile(replicates, torch.tensor([tail, 1 - tail], dtype=replicates.dtype)).tolist()
    return low, high


def recentered_interval(replicates: Tensor, value: float, confidence: float) -> tuple[float, float]:
    """Percentile interval, shifted so that the mean of the replicates is `value`, and cut at -1 and 1.

    Resampled seeds average to noisier outcomes than the real ones, so that every replicate's correlation is lower. The
    shift takes that bias out; a plain percentile interval often lies wholly below the value.
    """
    shift = value - float(replicates.nanmean())
    return interval((replicates + shift).clamp(-1, 1), confidence)


def check_settings(n_bootstrap: int, confidence: float) -> None:
    """Refuse settings without meaning, before anything is computed."""
    require_count(n_bootstrap, "n_bootstrap")
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must be between 0 and 1, such as 0.95; got {confidence!r}.")
