"""The gold standard: train the final model further without some examples, and see what happens to the queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from whence.data import Examples, LeftOutSets
from whence.errors import InputError
from whence.gold.facts import parameter_eps, seed_list, sweep_facts
from whence.gold.sweep import Sweep, run_sweep
from whence.scores import Outcomes
from whence.task import Task
from whence.training import EngineName, Execution, PointUnit, Problem, Recipe, refuse_functional_dropout, training_twin

LeftOut = int | Sequence[int] | LeftOutSets


@final
@dataclass(frozen=True, eq=False)
class Gold:
    """Measures of all queries after further training with and without each left-out set.

    Attributes:
        measures: float64 (n_seeds, n_points, n_sets, n_query), runs without a set.
        full: float64 (n_seeds, n_points, n_query), runs on all data.
        distances: float64 (n_seeds, n_points, n_sets): how far parameters moved from the final model.
        points: Amounts of further training, in `point_unit`.
        point_unit: "epochs" or "steps".
        seeds: Seeds of the order (and dropout) of further training.
        query_ids: Ids of the queries.
        left_out: Ids of the train examples in each left-out set.
        orientation: +1 where a lower measure is better.
        eps: Machine epsilon of the parameters.
        measure: Name of the measure.
        execution: Engine and chunks it was computed with.
    """

    measures: Tensor
    full: Tensor
    distances: Tensor
    points: tuple[int, ...]
    point_unit: PointUnit
    seeds: tuple[int, ...]
    query_ids: tuple[int | str, ...]
    left_out: tuple[tuple[int | str, ...], ...]
    orientation: int
    eps: float
    measure: str
    execution: Execution

    def outcomes(self, adjustment: Literal["mean", "full"] = "mean", *, n_seeds: int | None = None) -> Outcomes:
        """What leaving each set out did, the common movement of further training removed.

        Args:
            adjustment: "mean" subtracts the mean over the left-out sets of the same size (eq. 13 of the reference;
                it needs no run on all data and cancels whatever all leave-out runs share); "full" subtracts the run on
                all data (eq. 17), which carries an offset common to all sets.
            n_seeds: Use only the first seeds.
        Returns:
            Effects (n_seeds, n_points, n_query, n_sets), positive where leaving out made the query worse.
        Reference:
            Wei et al. (2025), arXiv:2412.03906, eq. (13) and (17).
        """
        measures = self.measures[:n_seeds].transpose(2, 3)
        full = self.full[:n_seeds]
        raw = measures - (self._size_means(measures) if adjustment == "mean" else full[..., None])
        return Outcomes(
            effects=self.orientation * raw,
            level=measures.abs().mean((0, 3)),
            eps=self.eps,
            points=self.points,
            point_unit=self.point_unit,
            query_ids=self.query_ids,
            left_out=self.left_out,
            adjustment=adjustment,
        )

    def _size_means(self, measures: Tensor) -> Tensor:
        """Mean over the sets of each size, in the place of every set; (..., n_sets)."""
        sizes = torch.tensor([len(s) for s in self.left_out])
        means = torch.empty_like(measures)
        for size in sorted(set(sizes.tolist())):
            columns = sizes == size
            means[..., columns] = (
                measures[..., columns].mean(-1, keepdim=True).expand(*measures.shape[:-1], int(columns.sum()))
            )
        return means


def further_train(
    task: Task,
    train: Examples,
    queries: Examples,
    recipe: Recipe,
    *,
    left_out: LeftOut = 100,
    seeds: int | Sequence[int] = 10,
    points: Sequence[int] | None = None,
    engine: EngineName = "auto",
    store_dir: str | Path | None = None,
    rebuild: bool = False,
) -> Gold:
    """Train the final model further, once on all data and once without each left-out set, for every seed.

    Args:
        task: The final model and its contract, in eval mode; not changed.
        train: Its train set.
        queries: Whose measures are recorded.
        recipe: How further training goes; optimizer state starts fresh.
        left_out: A count (evenly spaced examples, one at a time), train positions, or `LeftOutSets`.
        seeds: A count or the seeds; one seed is one order of the data, the same for all runs of the seed.
        points: Amounts of training, in the recipe's unit, at which measures are recorded; default its end.
        engine: "auto" times the engines first; "stacked", "loop" or "processes" takes that one.
        store_dir: Folder that keeps finished chunks, so that the same call continues after an interruption.
        rebuild: Recompute damaged chunks of `store_dir`.
    Returns:
        Measures of all runs; `.outcomes()` gives the adjusted effects.
    Raises:
        InputError: Something does not fit; before any training.
        StoreMismatchError: `store_dir` holds other settings.
        NonFiniteError: A run diverged.
    Cost:
        n_seeds * (n_sets + 1) further trainings.
    Reference:
        Wei et al. (2025), arXiv:2412.03906, section on the gold standard.
    """
    at = recipe.check_points([recipe.amount] if points is None else points)
    sets = as_sets(left_out, len(train)).validate(len(train))
    seed_values = seed_list(seeds)
    check_problem(task, train, queries, recipe)
    problem = Problem(training_twin(task, recipe.dropout), train, queries, recipe)
    positions = tuple(tuple(s) for s in sets)
    distinct = tuple(dict.fromkeys(positions))  # random sets may repeat
    ids = tuple(tuple(train.ids[i] for i in s) for s in positions)
    facts = sweep_facts("further training", task, train, queries, recipe, seed_values, at)
    sweep = Sweep(
        problem_of=lambda seed: problem,
        seeds=seed_values,
        sets=((), *distinct),
        record_steps=tuple(recipe.steps_at(p, len(train)) for p in at),
        settings={**facts, "left_out": [list(s) for s in positions]},
        header={"query_ids": list(queries.ids), "left_out": [list(s) for s in ids]},
        description="further training",
    )
    result = run_sweep(sweep, engine=engine, store_dir=store_dir, rebuild=rebuild)
    columns = torch.tensor([1 + distinct.index(s) for s in positions])
    return Gold(
        measures=result.measures[:, :, columns],
        full=result.measures[:, :, 0],
        distances=result.distances[:, :, columns],
        points=at,
        point_unit=recipe.unit,
        seeds=seed_values,
        query_ids=queries.ids,
        left_out=ids,
        orientation=task.measure.orientation,
        eps=parameter_eps(task),
        measure=task.measure.name,
        execution=result.execution,
    )


def as_sets(left_out: LeftOut, n_train: int) -> LeftOutSets:
    """Left-out sets from a count (evenly spaced), positions (one at a time), or as given.

    Raises:
        InputError: The count is more than there are examples, or a position is named twice.
    """
    if isinstance(left_out, LeftOutSets):
        return left_out
    if isinstance(left_out, int):
        return LeftOutSets.evenly_spaced(n_train, left_out)
    sets = LeftOutSets.singles(left_out)
    twice = [position for position, count in Counter(sets.indices.tolist()).items() if count > 1]
    if twice:
        raise InputError(f"`left_out` names position {twice[0]} more than once. Name each position once.")
    return sets


def check_problem(task: Task, train: Examples, queries: Examples, recipe: Recipe) -> None:
    """Refuse what would fail, or mean nothing, after long work."""
    task.check(train.all(), train.ids)
    task.check(queries.all(), queries.ids, role="query")
    if recipe.dropout:
        refuse_functional_dropout(task, train.batch(range(min(2, len(train)))))
