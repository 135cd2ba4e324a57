"""How reliable the outcomes themselves are: no scores can agree with them better than they do with themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import pandas as pd
import torch
from torch import Tensor

from whence.checks import look_up, require_count
from whence.evaluation.bootstrap import check_settings, interval, resample_counts, weighted_mean
from whence.evaluation.correlation import METRICS, Metric
from whence.evaluation.prediction import adjusted
from whence.rng import numpy_generator
from whence.scores import Outcomes


@final
@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability of outcomes at each point.

    `table` has one row per point:
        half: Mean correlation of two disjoint halves of the seeds, over splits and defined queries.
        reliability: `half` stepped up to all seeds; a negative one is left as it is, there is nothing to step up.
        low, high: Interval of `reliability`, resampling queries only.
        ceiling, ceiling_low, ceiling_high: Square roots; 0 where the reliability is negative. The expected
            correlation of perfect scores with these outcomes.
        n_query, n_undefined, n_splits; note: Why there is no number, or why the ceiling is 0.
    """

    table: pd.DataFrame
    metric: str
    n_seeds: int
    confidence: float

    def ceiling(self) -> dict[int, float]:
        """{point: ceiling}."""
        return {int(p): float(c) for p, c in zip(self.table["point"], self.table["ceiling"], strict=True)}


def spearman_brown(half: Tensor, factor: float) -> Tensor:
    """Reliability of `factor` times as many seeds, from the correlation `half` of two averages: m r / (1 + (m-1) r).

    Negative correlations, where the formula runs to minus infinity, are returned as they are.
    """
    return torch.where(half > 0, factor * half / (1 + (factor - 1) * half), half)


def reliability(
    outcomes: Outcomes,
    metric: str = "pearson",
    *,
    n_splits: int = 50,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Reliability:
    """Split-half reliability of the outcomes, stepped up to all their seeds.

    With S seeds, two disjoint halves of k = floor(S/2) seeds are averaged and correlated over the left-out sets of
    each query; the mean over splits and defined queries is stepped up by Spearman-Brown with factor S/k.

    Assumes that seeds differ by independent noise. What all seeds share (one model, one initial state, one dropout
    stream) counts as signal: the ceiling is then too high.

    Args:
        outcomes: What really happened; one seed gives NaN and a note.
        metric: A name in `METRICS`.
        n_splits: All splits are used where there are no more than this, else as many random ones.
        n_bootstrap: Replicates of the interval.
        confidence: Coverage the interval aims at.
        seed: Of random splits and bootstrap.
    """
    check_settings(n_bootstrap, confidence)
    require_count(n_splits, "n_splits")
    compare = look_up(METRICS, metric, "metric")
    splits = _splits(outcomes.n_seeds, n_splits, seed)
    counts = resample_counts(len(outcomes.query_ids), n_bootstrap, seed, "queries")
    rows: list[dict[str, Any]] = []
    for p, point in enumerate(outcomes.points):
        per_query = _split_half(compare, p, outcomes, splits).masked_fill(~outcomes.defined(p), math.nan)
        row = _summary(per_query, counts, outcomes.n_seeds, confidence)
        rows.append({"point": point, "metric": metric, **row, "n_splits": len(splits)})
    return Reliability(pd.DataFrame(rows), metric, outcomes.n_seeds, confidence)


Split = tuple[list[int], list[int]]


def _splits(n_seeds: int, at_most: int, seed: int) -> list[Split]:
    """Pairs of disjoint halves: all of them where there are no more than `at_most`."""
    k = n_seeds // 2
    if k == 0:
        return []
    n_all = math.comb(n_seeds, k) * math.comb(n_seeds - k, k) // 2
    if n_all <= at_most:
        return [
            (list(first), list(second))
            for first in combinations(range(n_seeds), k)
            for second in combinations([s for s in range(first[0] + 1, n_seeds) if s not in first], k)
        ]
    generator = numpy_generator(seed, "splits")
    orders = [generator.permutation(n_seeds).tolist() for _ in range(at_most)]
    return [(order[:k], order[k : 2 * k]) for order in orders]


def _split_half(compare: Metric, p: int, outcomes: Outcomes, splits: list[Split]) -> Tensor:
    """(n_query,) correlation of the two halves at position `p` of the points, averaged over splits."""
    if not splits:
        return torch.full((len(outcomes.query_ids),), math.nan, dtype=torch.float64)
    effects = outcomes.effects[:, p]
    per_split = [
        compare(
            adjusted(effects[first].mean(0), outcomes),
            adjusted(effects[second].mean(0), outcomes),
            outcomes.set_sizes,
        )
        for first, second in splits
    ]
    return torch.stack(per_split).nanmean(0)


def _summary(per_query: Tensor, counts: Tensor, n_seeds: int, confidence: float) -> dict[str, Any]:
    use = ~per_query.isnan()
    factor = n_seeds / max(n_seeds // 2, 1)
    half = per_query[use].mean()
    value = spearman_brown(half, factor)
    low, high = math.nan, math.nan
    if int(use.sum()) > 1:
        means = weighted_mean(per_query[use].expand(len(counts), -1), counts[:, use])
        low, high = interval(spearman_brown(means, factor), confidence)
    return {
        "half": float(half),
        "reliability": float(value),
        "low": low,
        "high": high,
        "ceiling": _ceiling(float(value)),
        "ceiling_low": _ceiling(low),
        "ceiling_high": _ceiling(high),
        "n_query": int(use.sum()),
        "n_undefined": int((~use).sum()),
        "note": _note(float(value), n_seeds),
    }


def _ceiling(value: float) -> float:
    return value if math.isnan(value) else math.sqrt(max(value, 0.0))


def _note(value: float, n_seeds: int) -> str:
    if n_seeds == 1:
        return "one seed: reliability needs two"
    if math.isnan(value):
        return "outcomes no more than rounding"
    return "negative reliability: ceiling set to 0" if value < 0 else ""
