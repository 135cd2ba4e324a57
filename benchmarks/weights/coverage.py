"""How often the interval of `lds` covers what infinitely many kept sets would give."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from whence import Outcomes, ScoreMatrix, lds
from whence.evaluation import spearman
from whence.rng import torch_generator


def coverage(n_repeats: int = 200, n_sets: int = 32, n_query: int = 40, n_train: int = 100) -> dict[str, Any]:
    """How often the interval of `lds` covers its limit, for scores of three qualities.

    Half of each set's noise is shared by all queries, as a lucky or unlucky run is.
    """
    result = {}
    for quality in (0.0, 0.5, 2.0):
        hits, widths = 0, []
        for repeat in range(n_repeats):
            low, high, limit = one_interval(repeat, quality, n_sets, n_query, n_train)
            hits += low <= limit <= high
            widths.append(high - low)
        result[f"signal {quality:g}"] = {"covered": hits / n_repeats, "mean_width": statistics.fmean(widths)}
    return {"repeats": n_repeats, "kept_sets": n_sets, "queries": n_query, **result}


def one_interval(seed: int, quality: float, n_sets: int, n_query: int, n_train: int) -> tuple[float, float, float]:
    """An interval from few kept sets, and the mean correlation over very many."""
    generator = torch_generator(seed, "coverage", quality)
    influence = torch.randn(n_query, n_train, generator=generator, dtype=torch.float64)
    scores = quality * influence + torch.randn(n_query, n_train, generator=generator, dtype=torch.float64)

    def outcome(count: int) -> tuple[Tensor, Tensor]:
        lacks = torch.rand(count, n_train, generator=generator).argsort(1)[:, : n_train // 2]
        mask = torch.zeros(count, n_train, dtype=torch.float64).scatter_(1, lacks, 1.0)
        own, shared = torch.randn(n_query, count, generator=generator), torch.randn(1, count, generator=generator)
        return mask, influence @ mask.T + 2.5 * (own + shared)

    mask, effects = outcome(n_sets)
    ids = tuple(tuple(row.nonzero().flatten().tolist()) for row in mask)
    outcomes = Outcomes(effects[None, None], torch.ones(1, n_query), 1e-7, (1,), "epochs", range(n_query), ids)
    matrix = ScoreMatrix(scores, range(n_query), range(n_train))
    row = lds(matrix, outcomes, n_bootstrap=300).table.iloc[0]
    many, truth = outcome(3000)
    return float(row["low"]), float(row["high"]), float(spearman(scores @ many.T, truth).mean())
