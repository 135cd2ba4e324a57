"""Means over queries with intervals, and paired differences of them: one set of bootstrap draws for all compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from torch import Tensor

from whence.checks import look_up
from whence.evaluation.bootstrap import check_settings, interval, resample_counts, weighted_mean

SUMMARY: Final = (
    "value",
    "low",
    "high",
    "over_random",
    "over_random_low",
    "over_random_high",
    "n_query",
    "n_undefined",
    "note",
)


@final
@dataclass(frozen=True, eq=False)
class QueryDraws:
    """Which queries each bootstrap replicate draws.

    Attributes:
        counts: (n_replicates, n_query) float64, how often each query is drawn.
        confidence: Coverage the intervals aim at.
    """

    counts: Tensor
    confidence: float

    @classmethod
    def of(cls, n_query: int, n_bootstrap: int, confidence: float, seed: int) -> QueryDraws:
        """Draws of `n_query` queries with replacement.

        Raises:
            InputError: A setting has no meaning.
        """
        check_settings(n_bootstrap, confidence)
        return cls(resample_counts(n_query, n_bootstrap, seed, "queries"), confidence)

    def mean(self, values: Tensor) -> list[float]:
        """[value, low, high]: mean of (n_query,), NaN entries left out, with its percentile interval.

        No interval for fewer than two queries, and no value for none.
        """
        used = values[~values.isnan()]
        if len(used) < 2:
            return [float(used.mean()), math.nan, math.nan]
        return [float(used.mean()), *interval(weighted_mean(values, self.counts), self.confidence)]

    def summary(self, values: Tensor, control: Tensor | None, note: str = "") -> dict[str, Any]:
        """The columns `SUMMARY` of one row: the mean, and the paired difference to a control where there is one."""
        over = [math.nan] * 3 if control is None else self.mean(values - control)
        n_query = int((~values.isnan()).sum())
        numbers = [*self.mean(values), *over, n_query, len(values) - n_query, "" if n_query else note]
        return dict(zip(SUMMARY, numbers, strict=True))

    def difference(self, per_query: Mapping[str, Tensor], first: str, second: str) -> list[float]:
        """[value, low, high] of `first` minus `second`, over the queries that both have a value for.

        Raises:
            UnknownNameError: A name is not among the compared ones.
        """
        one, other = (look_up(dict(per_query), name, "scores") for name in (first, second))
        return self.mean(one - other)
