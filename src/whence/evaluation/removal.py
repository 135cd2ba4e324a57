"""Counterfactual removal: how much worse does a query get when a model is trained without its top examples?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import pandas as pd
import torch
from torch import Tensor

from whence.checks import look_up, require_count
from whence.data import Examples
from whence.errors import InputError
from whence.evaluation.query_means import SUMMARY, QueryDraws
from whence.evaluation.rankings import RANDOM, SAME_CLASS, named, random_of_class, random_order, ranked
from whence.gold import Initialize, Retrained, retrain
from whence.scores import Id, ScoreMatrix
from whence.task import CrossEntropy, Task
from whence.training import EngineName, Recipe

Orders = dict[str, Sequence[Tensor]]  # name -> per query: train positions, first to be removed first
_TOO_SMALL: Final = "classes have fewer examples"


@final
@dataclass(frozen=True, eq=False)
class Removal:
    """What removing the top examples of queries did, by one or several score matrices and at random.

    Attributes:
        table: One row per name and count: name (a score matrix, "random examples", and with labels "random examples of
            the class"); count of removed examples; value, the mean over queries, positive where removal made them
            worse; low, high; over_random and its interval, the paired difference to random examples; n_query;
            n_undefined, queries whose class has fewer examples than are to be removed; note.
        areas: One row per name: the mean height of the curve of values over counts, from 0 to the largest count;
            columns as in `table`.
        per_query: name -> (n_counts, n_query) float64, the changes, NaN where undefined.
        area_per_query: name -> (n_query,) float64.
        full: (n_query,) float64, the measure after training on all data, mean over seeds.
        counts: Numbers of removed examples.
        query_ids: Ids of the queries.
        measure: Name of the measure.
        n_seeds: Retrainings of each set.
        n_trainings: All trainings, those on all data among them.
        draws: Of the bootstrap.
    """

    table: pd.DataFrame
    areas: pd.DataFrame
    per_query: dict[str, Tensor]
    area_per_query: dict[str, Tensor]
    full: Tensor
    counts: tuple[int, ...]
    query_ids: Sequence[Id]
    measure: str
    n_seeds: int
    n_trainings: int
    draws: QueryDraws

    def to_dict(self) -> dict[str, dict[int, list[float]]]:
        """{name: {count: [value, low, high]}}."""
        return by_count(self.table)

    def difference(self, first: str, second: str, *, count: int | None = None) -> list[float]:
        """[value, low, high] of `first` minus `second`: paired, on the same queries and bootstrap draws.

        Args:
            first, second: Names in the table.
            count: Removed examples; None compares the areas.
        Raises:
            UnknownNameError: A name is not in the table.
            InputError: No such count.
        """
        if count is None:
            return self.draws.difference(self.area_per_query, first, second)
        return difference_at(self.draws, self.per_query, self.counts, count, first, second)


def removal(
    task: Task,
    train: Examples,
    queries: Examples,
    scores: ScoreMatrix | Mapping[str, ScoreMatrix],
    recipe: Recipe,
    *,
    counts: Sequence[int | float],
    seeds: int | Sequence[int] = 1,
    initialize: Initialize | None = None,
    engine: EngineName = "auto",
    store_dir: str | Path | None = None,
    rebuild: bool = False,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Removal:
    """Retrain without the top examples of each query, and see how much worse the query gets.

    value[q] = o_q * (measure without the examples - measure on all data), mean over seeds, each seed with its own run
    on all data: positive where the examples had supported the query. Controls are equally many random examples, drawn
    anew for each query, and, where the loss has classes, random examples of the query's class. Equal sets are trained
    once, whoever names them.

    Intervals resample queries. The noise of the runs on all data is common to all names: with few seeds it is in every
    value, but not in differences.

    Args:
        task: Contract and architecture; without `initialize`, its parameters are the initialisation.
        train: Train examples.
        queries: Those to remove for: each costs retrainings of its own.
        scores: One matrix, or several by name. Ids are matched; extra ones are ignored.
        recipe: The original recipe.
        counts: How many of the highest scores, whatever their sign, are removed: integers, or shares of the train set
            between 0 and 1.
        seeds, initialize, engine, store_dir, rebuild: As in `retrain`. Only the same call continues a store.
        n_bootstrap: Replicates.
        confidence: Coverage the interval aims at.
        seed: Of the bootstrap and of the random examples.
    Returns:
        Changes in the measure's own unit. With one query there is no interval.
    Raises:
        InputError: Something does not fit; before any training.
        DataError: A query or a train example has no scores.
        NonFiniteError: A run diverged.
    Cost:
        n_seeds * (1 + distinct sets) trainings; at most n_query * n_counts sets for each name.
    Reference:
        Ilyas et al. (2022), arXiv:2202.00622; Zheng et al. (2024), arXiv:2311.00500, the counterfactual evaluation.
    """
    draws = QueryDraws.of(len(queries), n_bootstrap, confidence, seed)
    numbers = removed_counts(counts, len(train))
    orders = _orders(task, train, queries, named(scores, [RANDOM, SAME_CLASS]), numbers[-1], seed)
    wanted = {_set(order, n) for per_query in orders.values() for order in per_query for n in numbers} - {None}
    sets = [(), *sorted(s for s in wanted if s is not None)]
    found = retrain(
        task,
        train,
        queries,
        recipe,
        kept=[sorted(set(range(len(train))).difference(s)) for s in sets],
        seeds=seeds,
        initialize=initialize,
        engine=engine,
        store_dir=store_dir,
        rebuild=rebuild,
    )
    per_query = _changes(found, {s: j for j, s in enumerate(sets)}, orders, numbers)
    areas = {name: area(values, numbers) for name, values in per_query.items()}
    rows = [
        {"name": name, **draws.summary(values, None if name == RANDOM else areas[RANDOM], _TOO_SMALL)}
        for name, values in areas.items()
    ]
    return Removal(
        table=table_by_count(draws, per_query, numbers, _TOO_SMALL),
        areas=pd.DataFrame(rows, columns=["name", *SUMMARY]),
        per_query=per_query,
        area_per_query=areas,
        full=found.measures[:, -1, 0].mean(0),
        counts=numbers,
        query_ids=queries.ids,
        measure=task.measure.name,
        n_seeds=len(found.seeds),
        n_trainings=len(found.seeds) * len(sets),
        draws=draws,
    )


def removed_counts(counts: Sequence[int | float], n_train: int) -> tuple[int, ...]:
    """Numbers of examples, increasing, from integers and shares of the train set.

    Raises:
        InputError: There is none, two are equal, or one leaves nothing to remove or nothing to train on.
    """
    found = []
    for given in counts:
        if isinstance(given, float):
            if not 0 < given < 1:
                raise InputError(f"A share in `counts` must be between 0 and 1, such as 0.05; got {given!r}.")
            found.append(max(1, round(given * n_train)))
        else:
            require_count(given, "counts")
            found.append(int(given))
    if not found or len(set(found)) < len(found) or max(found) >= n_train:
        raise InputError(
            f"`counts` must be distinct numbers of examples below the {n_train} there are; got {list(counts)}, which "
            f"are {found}."
        )
    return tuple(sorted(found))


def _orders(
    task: Task, train: Examples, queries: Examples, scores: Mapping[str, ScoreMatrix], most: int, seed: int
) -> Orders:
    """Per name and query what is removed, at most `most`, in this order."""
    orders: Orders = {name: list(ranked(matrix, queries, train, most)) for name, matrix in scores.items()}
    orders[RANDOM] = list(random_order(queries, train, most, seed))
    if isinstance(task.loss, CrossEntropy):
        of_queries, of_train = (task.loss.target(examples.all()) for examples in (queries, train))
        orders[SAME_CLASS] = random_of_class(queries, train, of_queries, of_train, most, seed)
    return orders


def _set(order: Tensor, n: int) -> tuple[int, ...] | None:
    """The first `n` in ascending order; None where there are fewer."""
    return tuple(sorted(order[:n].tolist())) if len(order) >= n else None


def _changes(
    found: Retrained, column: Mapping[tuple[int, ...], int], orders: Orders, counts: tuple[int, ...]
) -> dict[str, Tensor]:
    """name -> (n_counts, n_query): how much worse each query got without its sets, mean over seeds."""
    worse = found.orientation * (found.measures[:, -1] - found.measures[:, -1, :1]).mean(0)  # (n_sets, n_query)
    changes = {}
    for name, per_query in orders.items():
        changes[name] = torch.full((len(counts), len(per_query)), torch.nan, dtype=torch.float64)
        for q, order in enumerate(per_query):
            for c, n in enumerate(counts):
                removed = _set(order, n)
                if removed is not None:
                    changes[name][c, q] = worse[column[removed], q]
    return changes


def area(values: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Mean height of each query's curve, straight between its points and 0 at count 0; (n_counts, n_query)."""
    at = torch.tensor([0, *counts], dtype=torch.float64)
    curve = torch.cat([torch.zeros_like(values[:1]), values])
    mean: Tensor = torch.trapezoid(curve, at, dim=0) / at[-1]
    return mean


# --- what every table over counts shares ------------------------------------------------------------------------------


def table_by_count(
    draws: QueryDraws, per_query: Mapping[str, Tensor], counts: Sequence[int], note: str
) -> pd.DataFrame:
    """One row per name and count, from values (n_counts, n_query)."""
    rows: list[dict[str, Any]] = []
    for name, values in per_query.items():
        for c, count in enumerate(counts):
            control = None if name == RANDOM else per_query[RANDOM][c]
            rows.append({"name": name, "count": count, **draws.summary(values[c], control, note)})
    return pd.DataFrame(rows, columns=["name", "count", *SUMMARY])


def by_count(table: pd.DataFrame) -> dict[str, dict[int, list[float]]]:
    """{name: {count: [value, low, high]}} of such a table."""
    out: dict[str, dict[int, list[float]]] = {}
    for row in table.to_dict("records"):
        out.setdefault(row["name"], {})[int(row["count"])] = [row["value"], row["low"], row["high"]]
    return out


def difference_at(
    draws: QueryDraws, per_query: Mapping[str, Tensor], counts: Sequence[int], count: int, first: str, second: str
) -> list[float]:
    """The paired difference of two names at a count."""
    for name in (first, second):
        look_up(dict(per_query), name, "scores")
    if count not in counts:
        raise InputError(f"Examples were removed in numbers of {list(counts)}; got {count}.")
    at = list(counts).index(count)
    return draws.difference({name: per_query[name][at] for name in (first, second)}, first, second)
