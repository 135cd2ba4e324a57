"""Brittleness: how few of its top examples must go until a classifier predicts something else of a query?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor

from whence.errors import InputError
from whence.evaluation.removal import Removal, by_count, difference_at, table_by_count
from whence.gold import CLASS_LEAD
from whence.scores import Id

_NOTE: Final = "no query is predicted right on all data, or classes have fewer examples"


@final
@dataclass(frozen=True, eq=False)
class Brittleness:
    """After how many removed examples predictions flip, by one or several score matrices and at random.

    Attributes:
        table: One row per name and count: name and count as in `Removal`; value, the share of queries that flipped by
            that count; low, high, its Wilson interval; over_random and its interval, the paired difference to random
            examples, by bootstrap over queries, without width where all queries agree; n_query; n_undefined, queries
            that were not predicted right to begin with, or whose class ran out of examples; note.
        flipped: name -> (n_counts, n_query) float64, 1 where the prediction flipped at this count or a smaller one,
            0 where not, NaN where undefined.
        smallest: name -> (n_query,) float64, the smallest count of the grid that flips the prediction; infinite where
            none does, NaN where undefined.
        removal: What it was read from.
    """

    table: pd.DataFrame
    flipped: dict[str, Tensor]
    smallest: dict[str, Tensor]
    removal: Removal

    @property
    def counts(self) -> tuple[int, ...]:
        """The grid of counts."""
        return self.removal.counts

    @property
    def query_ids(self) -> Sequence[Id]:
        """Ids of the queries."""
        return self.removal.query_ids

    def to_dict(self) -> dict[str, dict[int, list[float]]]:
        """{name: {count: [share, low, high]}}."""
        return by_count(self.table)

    def difference(self, first: str, second: str, *, count: int | None = None) -> list[float]:
        """[value, low, high] of the share of `first` minus that of `second`: paired, on the same queries and draws.

        Args:
            first, second: Names in the table.
            count: Removed examples; None is the largest.
        Raises:
            UnknownNameError: A name is not in the table.
            InputError: No such count.
        """
        at = self.counts[-1] if count is None else count
        return difference_at(self.removal.draws, self.flipped, self.counts, at, first, second)


def brittleness(removed: Removal) -> Brittleness:
    """Read from a counterfactual removal after how many examples the prediction of each query flips.

        removed = removal(class_lead(task), train, queries, scores, recipe, counts=[5, 10, 20, 40], seeds=5)
        brittleness(removed)

    A query is predicted right where the logit of its class leads all others, in the mean over seeds, and flips where
    it no longer does. The grid of counts is searched from its smallest: a prediction that flips at one count and turns
    back at a larger one counts as flipped. Queries that are predicted wrong on all data have nothing to flip; to ask
    for the model's predictions rather than the true labels, give queries with those as labels. Better scores give
    higher shares at smaller counts.

    Args:
        removed: Of a task with the measure `class_lead`.
    Raises:
        InputError: The removal was measured in something else, from which no prediction can be read.
    Cost:
        None beside that of the removal: nothing is trained.
    Reference:
        Ilyas et al. (2022), arXiv:2202.00622, data support; Park et al. (2023), arXiv:2303.14186, brittleness.
    """
    if removed.measure != CLASS_LEAD:
        raise InputError(
            f"The removal was measured in {removed.measure!r}, which does not tell predictions. Brittleness is for "
            "classification: run `removal` on `class_lead(task)`."
        )
    flipped = {name: _flipped(removed.full, changes) for name, changes in removed.per_query.items()}
    table = table_by_count(removed.draws, flipped, removed.counts, _NOTE)
    table[["low", "high"]] = [
        _wilson(share, n, removed.draws.confidence) for share, n in zip(table["value"], table["n_query"], strict=True)
    ]
    return Brittleness(table, flipped, {n: _smallest(f, removed.counts) for n, f in flipped.items()}, removed)


def _flipped(full: Tensor, changes: Tensor) -> Tensor:
    """(n_counts, n_query): 1, 0 or NaN, from leads on all data and how much smaller each removal made them."""
    by_now = ((full - changes) <= 0).double().cummax(0).values  # False for NaN
    unknown = changes.isnan().cummax(0).values & (by_now == 0)
    return by_now.masked_fill(unknown | (full <= 0), math.nan)


def _smallest(flipped: Tensor, counts: Sequence[int]) -> Tensor:
    """(n_query,) first count with a 1; infinite where there is none, NaN where that cannot be said."""
    at = torch.tensor([*counts, math.inf], dtype=torch.float64)[(flipped != 1).sum(0)]
    return at.masked_fill(flipped[-1].isnan(), math.nan)


def _wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval (1927): unlike the bootstrap's it has a width where none or all flipped."""
    if n == 0:
        return math.nan, math.nan
    found = binomtest(round(share * n), n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)
