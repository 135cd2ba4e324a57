"""Linear datamodeling score: do summed scores predict how queries fare when a model is trained on part of the data?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import pandas as pd
import torch
from torch import Tensor

from whence.errors import InputError
from whence.evaluation.bootstrap import (
    check_settings,
    recentered_interval,
    resample_counts,
    resample_positions,
    weighted_mean,
)
from whence.evaluation.correlation import spearman
from whence.evaluation.prediction import predict
from whence.scores import Outcomes, ScoreMatrix

_WORKING_ELEMENTS: Final = 2**20  # numbers ranked at a time


@final
@dataclass(frozen=True, eq=False)
class Lds:
    """Linear datamodeling scores of one or several score matrices against the same outcomes.

    Attributes:
        table: One row per score matrix: name; value, the mean over queries; low, high; n_query, n_undefined; note, why
            there is no value.
        per_query: name -> (n_query,) Spearman correlations, NaN where undefined.
        replicates: name -> (n_replicates,) bootstrap means, of the same draws for all names.
        n_sets: Kept sets.
        n_seeds: Retrainings of each set.
        confidence: Coverage the intervals aim at.
    """

    table: pd.DataFrame
    per_query: dict[str, Tensor]
    replicates: dict[str, Tensor]
    n_sets: int
    n_seeds: int
    confidence: float

    def to_dict(self) -> dict[str, list[float]]:
        """{name: [value, low, high]}."""
        return {row["name"]: [row["value"], row["low"], row["high"]] for row in self.table.to_dict("records")}

    def difference(self, first: str, second: str) -> list[float]:
        """[value, low, high] of `first` minus `second`: paired, on the same queries, sets and bootstrap draws.

        Raises:
            InputError: A name is not among the compared ones.
        """
        for name in (first, second):
            if name not in self.per_query:
                raise InputError(f"No scores {name!r} were compared. Known: {', '.join(self.per_query)}.")
        gaps = self.per_query[first] - self.per_query[second]
        value = float(gaps[~gaps.isnan()].mean())
        if not math.isfinite(value):
            return [math.nan] * 3
        shifted = (self.replicates[first] - self.replicates[second]) / 2  # a difference lies between -2 and 2
        low, high = recentered_interval(shifted, value / 2, self.confidence)
        return [value, 2 * low, 2 * high]


def lds(
    scores: ScoreMatrix | Mapping[str, ScoreMatrix],
    outcomes: Outcomes,
    *,
    point: int | None = None,
    n_bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Lds:
    """Spearman correlation, over retrainings, of summed scores with how each query fared; mean over queries.

    The interval resamples queries and retrained sets, both with replacement, and is shifted onto the value
    (`recentered_interval`). Sets count: all queries share them, so that with 32 sets an interval over queries alone is
    much too narrow. The noise of the seeds is part of each set's outcome and is resampled with it; the ceiling
    (`reliability(outcomes, "spearman")`) says what it leaves to be explained.

    Args:
        scores: One matrix, or several by name. Ids are matched; extra ones are ignored.
        outcomes: `retrain(...).outcomes()`.
        point: Amount of training at which the outcomes were measured; default the last.
        n_bootstrap: Replicates.
        confidence: Coverage the interval aims at.
        seed: Of the bootstrap.
    Returns:
        A value in [-1, 1] per matrix: 1 for perfect scores, about 0 for random ones. A constant added to all scores of
        a query changes nothing where all sets have one size.
    Raises:
        DataError: A query or a train example has no scores.
        InputError: No such point, or fewer than three sets.
    Cost:
        n_bootstrap x n_query x n_sets^2 multiplications per matrix; with left-out sets of several sizes n_bootstrap x
        n_query rankings of n_sets numbers.
    Reference:
        Park et al. (2023), arXiv:2303.14186; Ilyas et al. (2022), arXiv:2202.00622.
    """
    check_settings(n_bootstrap, confidence)
    by_name = {scores.method: scores} if isinstance(scores, ScoreMatrix) else dict(scores)
    p = _position(outcomes, point)
    n_sets, n_query = len(outcomes.left_out), len(outcomes.query_ids)
    if n_sets < 3:
        raise InputError(f"A linear datamodeling score needs at least 3 kept sets; the outcomes have {n_sets}.")
    gold = outcomes.effects[:, p].mean(0)
    queries = resample_counts(n_query, n_bootstrap, seed, "queries")
    sets = resample_positions(n_sets, n_bootstrap, seed, "kept sets")
    rows: list[dict[str, Any]] = []
    per_query, replicates = {}, {}
    for name, matrix in by_name.items():
        predicted = predict(matrix, outcomes)[p]
        values = spearman(predicted, gold, outcomes.set_sizes).masked_fill(~outcomes.defined(p), math.nan)
        per_query[name] = values
        replicates[name] = weighted_mean(_resampled(predicted, gold, values, outcomes, sets), queries)
        rows.append({"name": name, **_summary(values, replicates[name], confidence)})
    table = pd.DataFrame(rows, columns=["name", "value", "low", "high", "n_query", "n_undefined", "note"])
    return Lds(table, per_query, replicates, n_sets, outcomes.n_seeds, confidence)


def _position(outcomes: Outcomes, point: int | None) -> int:
    if point is None:
        return len(outcomes.points) - 1
    if point not in outcomes.points:
        raise InputError(f"The outcomes were measured at {list(outcomes.points)} {outcomes.point_unit}; got {point}.")
    return outcomes.points.index(point)


def _resampled(predicted: Tensor, gold: Tensor, values: Tensor, outcomes: Outcomes, sets: Tensor) -> Tensor:
    """Spearman per query over each row of set positions; NaN stays where `values` has it. -> (n_replicates, n_query)"""
    if len(set(outcomes.set_sizes)) == 1:
        found = _by_counts(predicted, gold, sets)
    else:
        found = _by_sorting(predicted, gold, sets, torch.tensor(outcomes.set_sizes))
    return found.masked_fill(values.isnan(), math.nan)


def _by_sorting(predicted: Tensor, gold: Tensor, sets: Tensor, sizes: Tensor) -> Tensor:
    """Every row of positions is centered among sets of one size and ranked. -> (n_replicates, n_query)"""
    parts = []
    for part in torch.split(sets, max(1, _WORKING_ELEMENTS // predicted.numel())):
        x, y = (side[:, part].transpose(0, 1) for side in (predicted, gold))  # (b, n_query, n_sets)
        parts.append(torch.stack([spearman(a, b, sizes[own].tolist()) for a, b, own in zip(x, y, part, strict=True)]))
    return torch.cat(parts)


def _by_counts(predicted: Tensor, gold: Tensor, sets: Tensor) -> Tensor:
    """The same for sets of one size: how often each was drawn tells all ranks, and nothing is sorted."""
    n_replicates, n_sets = sets.shape
    counts = torch.zeros(n_replicates, n_sets, dtype=torch.float64)
    counts.scatter_add_(1, sets, torch.ones_like(counts))
    at_a_time = max(1, _WORKING_ELEMENTS // (n_sets * max(n_replicates, n_sets)))
    parts = []
    for x, y in zip(torch.split(predicted, at_a_time), torch.split(gold, at_a_time), strict=True):
        x, y = _ranks_around_mean(x, counts), _ranks_around_mean(y, counts)
        product, first, second = ((counts * a * b).sum(2) for a, b in ((x, y), (x, x), (y, y)))
        parts.append((product / (first * second).sqrt()).clamp(-1, 1))
    return torch.cat(parts).T


def _ranks_around_mean(x: Tensor, counts: Tensor) -> Tensor:
    """Average ranks less their mean, in samples that hold each of n numbers as often as `counts` says.

    Args:
        x: (n_query, n).
        counts: (n_replicates, n), each row adding up to n.
    Returns:
        (n_query, n_replicates, n).
    """
    lower = torch.where(x[:, None] < x[:, :, None], 1.0, torch.where(x[:, None] == x[:, :, None], 0.5, 0.0))
    return counts @ lower.double().transpose(1, 2) - x.shape[1] / 2


def _summary(values: Tensor, replicates: Tensor, confidence: float) -> dict[str, Any]:
    used = values[~values.isnan()]
    value = float(used.mean())
    low, high = recentered_interval(replicates, value, confidence) if len(used) else (math.nan, math.nan)
    note = "" if len(used) else "constant scores, or outcomes no more than rounding"
    return {
        "value": value,
        "low": low,
        "high": high,
        "n_query": len(used),
        "n_undefined": len(values) - len(used),
        "note": note,
    }
