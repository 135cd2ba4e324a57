"""How agreement grows with the number of seeds averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from whence.checks import look_up, require_count
from whence.errors import InputError
from whence.evaluation.correlation import METRICS, Metric
from whence.evaluation.prediction import adjusted, method_name, predict
from whence.scores import Outcomes, ScoreMatrix

PUBLISHED_COUNTS = (1, 2, 5, 10, 20, 50, 100)


def seeds_curve(
    scores: ScoreMatrix | Mapping[int, ScoreMatrix],
    outcomes: Outcomes,
    metric: str = "cosine",
    counts: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Agreement with the average of k seeds, for each k in `counts`.

    The seeds are cut into non-overlapping windows of k consecutive ones; a rest is dropped. The correlation is taken
    per point, window and query, and averaged over windows and defined queries; then the best point is taken, for each
    k anew. That maximum flatters noisy curves of many points; the columns per point do not.

    Args:
        scores: As for `agreement`.
        outcomes: What really happened.
        metric: A name in `METRICS`.
        counts: Window lengths; None takes 1, 2, 5, 10, 20, 50, 100 as far as the seeds go, and all seeds.
    Returns:
        Columns method, metric, seeds, n_windows, value and sem at the best point, point, and for each point p
        `value_at_p`, `sem_at_p`. SEM: sample standard deviation over windows and queries over the root of their number.
    Reference:
        Wei et al. (2025), arXiv:2412.03906, figure 3.
    """
    compare = look_up(METRICS, metric, "metric")
    predicted = predict(scores, outcomes)
    rows = []
    for count in _counts(counts, outcomes.n_seeds):
        n_windows = outcomes.n_seeds // count
        at_points = [_window_agreement(compare, predicted[p], p, outcomes, count) for p in range(len(outcomes.points))]
        best = max(range(len(at_points)), key=lambda p: -math.inf if math.isnan(at_points[p][0]) else at_points[p][0])
        value, sem = at_points[best]
        point = pd.NA if math.isnan(value) else outcomes.points[best]
        row = {"seeds": count, "n_windows": n_windows, "value": value, "sem": sem, "point": point}
        for p, (mean, error) in zip(outcomes.points, at_points, strict=True):
            row |= {f"value_at_{p}": mean, f"sem_at_{p}": error}
        rows.append({"method": method_name(scores), "metric": metric, **row})
    return pd.DataFrame(rows).astype({"point": "Int64"})


def _counts(counts: Sequence[int] | None, n_seeds: int) -> list[int]:
    if counts is None:
        return sorted({count for count in PUBLISHED_COUNTS if count <= n_seeds} | {n_seeds})
    for count in counts:
        require_count(count, "counts")
        if count > n_seeds:
            raise InputError(f"`counts` asks for windows of {count} seeds; the outcomes have {n_seeds}.")
    return list(counts)


def _window_agreement(
    compare: Metric, predicted: Tensor, p: int, outcomes: Outcomes, count: int
) -> tuple[float, float]:
    """Mean and standard error over windows and queries at position `p` of the points."""
    n_windows = outcomes.n_seeds // count
    effects = outcomes.effects[: n_windows * count, p]
    windows = effects.reshape(n_windows, count, *effects.shape[1:]).mean(1)
    values = compare(predicted, adjusted(windows, outcomes), outcomes.set_sizes)[:, outcomes.defined(p)]
    used = values[~values.isnan()]
    sem = float(torch.std(used, correction=1)) / math.sqrt(len(used)) if len(used) > 1 else math.nan
    return float(used.mean()), sem
