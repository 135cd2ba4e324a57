"""Agreement of scores with what really happened, point by point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import pandas as pd
import torch
from torch import Tensor

from whence.checks import look_up
from whence.errors import InputError
from whence.evaluation.bootstrap import (
    check_settings,
    recentered_interval,
    resample_counts,
    seed_weights,
    weighted_mean,
)
from whence.evaluation.correlation import METRICS, Metric
from whence.evaluation.prediction import adjusted, method_name, predict
from whence.scores import Id, Outcomes, ScoreMatrix

_REPLICATES_AT_MOST: Final = {"spearman": 200}  # ranking every replicate is what costs
_FLAT: Final = {"cosine": "zero scores"}  # why a metric is NaN; "constant scores" for all others
_COLUMNS: Final = ["method", "point", "metric", "value", "sem", "low", "high", "n_query", "n_undefined", "note"]
_WORKING_ELEMENTS: Final = 2**19  # effects resampled at a time; more would leave the cache


@final
@dataclass(frozen=True, eq=False)
class Agreement:
    """Correlations of scores with outcomes, of one method or several against the same outcomes.

    `table` has one row per method, point and metric:
        value: Mean over the defined queries.
        sem: Sample standard deviation over those queries over the square root of their number.
        low, high: Bootstrap interval over queries and seeds, see `agreement`.
        n_query, n_undefined: Queries averaged, and queries left out because the correlation does not exist.
        note: Why there is no value, such as "constant scores"; empty where there is one.
    """

    table: pd.DataFrame
    per_query: dict[str, dict[str, Tensor]]  # [method][metric] -> (n_points, n_query), NaN where undefined
    undefined: dict[int, list[Id]]  # point -> queries whose outcomes are no more than rounding
    notes: tuple[str, ...]
    points: tuple[int, ...]
    point_unit: str
    query_ids: Sequence[Id]
    n_seeds: int
    adjustment: str
    confidence: float

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of the table."""
        return list(self.per_query)

    def to_dict(self, metric: str = "cosine") -> dict[str, dict[int, list[float]]]:
        """{method: {point: [value, low, high]}} for one metric."""
        known: list[str] = list(dict.fromkeys(self.table["metric"]))
        look_up(dict.fromkeys(known), metric, "metric")
        out: dict[str, dict[int, list[float]]] = {name: {} for name in self.methods}
        for row in self.table[self.table["metric"] == metric].to_dict("records"):
            out[row["method"]][int(row["point"])] = [float(row[name]) for name in ("value", "low", "high")]
        return out

    @classmethod
    def concat(cls, parts: Sequence[Agreement]) -> Agreement:
        """Several methods in one table.

        Raises:
            InputError: Nothing was passed, a method comes twice, or the parts were compared with different outcomes.
        """
        if not parts:
            raise InputError("At least one agreement is needed; got none.")
        if len({_setting(part) for part in parts}) > 1:
            raise InputError(
                "Agreements can be put together only when they share points, queries, seeds, adjustment and "
                "confidence. Compare all methods with the same outcomes."
            )
        names = [name for part in parts for name in part.methods]
        if len(set(names)) < len(names):
            raise InputError(f"A method occurs more than once: {', '.join(names)}. Rename it in its score matrix.")
        first = parts[0]
        return cls(
            table=pd.concat([part.table for part in parts], ignore_index=True),
            per_query={name: values for part in parts for name, values in part.per_query.items()},
            undefined=first.undefined,
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            points=first.points,
            point_unit=first.point_unit,
            query_ids=first.query_ids,
            n_seeds=first.n_seeds,
            adjustment=first.adjustment,
            confidence=first.confidence,
        )


def _setting(part: Agreement) -> tuple[object, ...]:
    undefined = tuple((point, tuple(ids)) for point, ids in part.undefined.items())
    queries = tuple(part.query_ids)
    return part.points, part.point_unit, queries, part.n_seeds, part.adjustment, part.confidence, undefined


def agreement(
    scores: ScoreMatrix | Mapping[int, ScoreMatrix],
    outcomes: Outcomes,
    *,
    metrics: Sequence[str] = ("cosine", "pearson", "spearman"),
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """How well scores predict what leaving examples out does, per amount of further training.

    The score of a left-out set is the sum of its members' scores. Cosine takes the scores as they are, as published:
    an offset common to all of them costs. Pearson centers them, among sets of one size.

    The interval resamples seeds (`seed_weights`) and queries, keeps undefined queries out, and is shifted onto the
    value (`recentered_interval`). It aims at the mean agreement with *as many* seeds, not with infinitely many (see
    `reliability`). In simulations 89 to 100 % of 95 % intervals covered with three seeds or more; with two seeds that
    move all queries together, 70 %. Spearman uses 200 replicates at most. With one seed the interval knows only the
    spread over queries; with one query there is none.

    Args:
        scores: One matrix for all points, or one for each: {point: matrix}. Ids are matched; extra ones are ignored.
        outcomes: What really happened.
        metrics: Names in `METRICS`.
        n_bootstrap: Replicates; the same draws for every method, point and metric.
        confidence: Coverage the interval aims at.
        seed: Of the bootstrap.
    Returns:
        One row per point and metric. Queries whose outcomes are no more than rounding are named in `undefined` and
        not averaged; nor are queries with constant (for the cosine: zero) scores, which `notes` name.
    Raises:
        DataError: A query or a left-out example has no scores.
        InputError: A mapping lacks a point, or mixes methods.
        UnknownNameError: A metric is unknown.
    Cost:
        Per point and metric n_bootstrap x n_seeds x n_query x n_sets multiplications.
    Reference:
        Wei et al. (2025), arXiv:2412.03906, figures 2 (cosine) and 6 (Spearman).
    """
    check_settings(n_bootstrap, confidence)
    compare = {name: look_up(METRICS, name, "metric") for name in metrics}
    method, predicted = method_name(scores), predict(scores, outcomes)
    draws = _Draws(
        seeds=seed_weights(outcomes.n_seeds, n_bootstrap, seed),
        queries=resample_counts(len(outcomes.query_ids), n_bootstrap, seed, "queries"),
    )
    rows: list[dict[str, Any]] = []
    notes = _general_notes(outcomes)
    per_query = {name: torch.empty(predicted.shape[:2], dtype=torch.float64) for name in compare}
    for p, point in enumerate(outcomes.points):
        for name in compare:
            values, usable = _correlations(name, predicted[p], p, outcomes)
            low, high = _interval(name, predicted[p], p, outcomes, values, draws, confidence)
            summary = _summary(name, values, usable)
            rows.append({"method": method, "point": point, "metric": name, **summary, "low": low, "high": high})
            notes += _flat_notes(f"{method}, {name} at {point} {outcomes.point_unit}", name, values, usable, outcomes)
            per_query[name][p] = values
    return Agreement(
        table=pd.DataFrame(rows, columns=_COLUMNS),
        per_query={method: per_query},
        undefined={point: _named(~outcomes.defined(p), outcomes) for p, point in enumerate(outcomes.points)},
        notes=tuple(dict.fromkeys(notes)),
        points=outcomes.points,
        point_unit=outcomes.point_unit,
        query_ids=outcomes.query_ids,
        n_seeds=outcomes.n_seeds,
        adjustment=outcomes.adjustment,
        confidence=confidence,
    )


@final
@dataclass(frozen=True, eq=False)
class _Draws:
    """Bootstrap weights: of the seeds (n_replicates, n_seeds), and of the queries (n_replicates, n_query)."""

    seeds: Tensor
    queries: Tensor


def _correlations(name: str, predicted: Tensor, p: int, outcomes: Outcomes) -> tuple[Tensor, Tensor]:
    """Per query at position `p` of the points: the correlation, and whether the outcomes allow one."""
    metric, sizes = METRICS[name], outcomes.set_sizes
    gold = adjusted(outcomes.effects[:, p].mean(0), outcomes)
    usable = outcomes.defined(p) & ~metric(gold, gold, sizes).isnan()
    return metric(predicted, gold, sizes).masked_fill(~usable, math.nan), usable


def _interval(
    name: str, predicted: Tensor, p: int, outcomes: Outcomes, values: Tensor, draws: _Draws, confidence: float
) -> tuple[float, float]:
    """Bootstrap limits of the mean of `values` (n_query,) at position `p` of the points."""
    use = ~values.isnan()
    if int(use.sum()) < 2:
        return math.nan, math.nan
    n = _REPLICATES_AT_MOST.get(name, len(draws.seeds))
    replicates = values[use].expand(len(draws.seeds[:n]), -1)
    if outcomes.n_seeds > 1:
        effects = outcomes.effects[:, p][:, use]
        replicates = _resampled(METRICS[name], predicted[use], effects, outcomes, draws.seeds[:n])
    means = weighted_mean(replicates, draws.queries[:n, use])
    return recentered_interval(means, float(values[use].mean()), confidence)


def _resampled(metric: Metric, predicted: Tensor, effects: Tensor, outcomes: Outcomes, weights: Tensor) -> Tensor:
    """The metric for effects averaged with each row of seed `weights`. -> (n_replicates, n_query)"""
    flat = effects.flatten(1)  # (n_seeds, n_query * n_sets)
    parts = []
    for part in torch.split(weights, max(1, _WORKING_ELEMENTS // flat.shape[1])):
        gold = (part @ flat).reshape(len(part), *predicted.shape)
        parts.append(metric(predicted, adjusted(gold, outcomes), outcomes.set_sizes))
    return torch.cat(parts)


def _summary(name: str, values: Tensor, usable: Tensor) -> dict[str, Any]:
    used = values[~values.isnan()]
    note = ""
    if len(used) == 0:
        note = _FLAT.get(name, "constant scores") if bool(usable.any()) else "outcomes no more than rounding"
    return {
        "value": float(used.mean()),
        "sem": float(used.std(correction=1)) / math.sqrt(len(used)) if len(used) > 1 else math.nan,
        "n_query": len(used),
        "n_undefined": len(values) - len(used),
        "note": note,
    }


def _general_notes(outcomes: Outcomes) -> list[str]:
    notes = []
    if outcomes.n_seeds == 1:
        notes.append("one seed: intervals cover the spread over queries only")
    if len(outcomes.query_ids) == 1:
        notes.append("one query: no interval")
    return notes


def _flat_notes(where: str, name: str, values: Tensor, usable: Tensor, outcomes: Outcomes) -> list[str]:
    flat = _named(values.isnan() & usable, outcomes)
    if not flat:
        return []
    what = _FLAT.get(name, "constant scores")
    how_many = "all" if len(flat) == int(usable.sum()) else len(flat)
    return [f"{where}: {what} for {how_many} queries, such as {flat[0]!r}"]


def _named(mask: Tensor, outcomes: Outcomes) -> list[Id]:
    return [outcomes.query_ids[q] for q in mask.nonzero().flatten().tolist()]
